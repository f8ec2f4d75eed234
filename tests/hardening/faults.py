"""Transient errors of system calls in the processes of a server, switched on and off by a file.

`install` writes a `sitecustomize.py` that every Python process of the server runs at its start. A fault hits
calls on files below one folder, and for `fork` every new process. It stays in force until `off`.
"""

from pathlib import Path

_SITECUSTOMIZE = """
import builtins, io, os, stat, subprocess, sys

FOLDER = {folder!r}
CONTROL, HIT = {control!r}, {hit!r}
WORDS = " ".join(sys.orig_argv)
KINDS = ("worker", "version_check", "recall_process")
WHO = next((kind for kind in KINDS if f"re4.serving." in WORDS and WORDS.split("re4.serving.")[1]
            .split()[0].endswith(kind)), "supervisor")
_open, _stat, _io_open, _read, _fork = os.open, os.stat, io.open, os.read, subprocess._fork_exec


def fail(call, path=None):
    try:
        control = _open(CONTROL, os.O_RDONLY)
    except OSError:
        return
    who, wanted, number = _read(control, 1000).decode().split()
    os.close(control)
    if who != WHO or wanted != call:
        return
    if path is not None and os.path.isabs(os.fspath(path)) and not os.fspath(path).startswith(FOLDER):
        return
    os.close(_open(HIT, os.O_WRONLY | os.O_CREAT))
    raise OSError(int(number), os.strerror(int(number)), path)


def failing_open(path, flags, mode=0o777, *, dir_fd=None):
    fail("open", path)
    return _open(path, flags, mode, dir_fd=dir_fd)


def failing_stat(path, *args, **options):
    if not isinstance(path, int):
        fail("stat", path)
    return _stat(path, *args, **options)


def failing_io_open(file, *args, **options):
    if not isinstance(file, int):
        fail("open", file)
    return _io_open(file, *args, **options)


def failing_read(descriptor, length):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        fail("read")
    return _read(descriptor, length)


def failing_fork(*args):
    fail("fork")
    return _fork(*args)


os.open, os.stat, os.read, subprocess._fork_exec = failing_open, failing_stat, failing_read, failing_fork
io.open = builtins.open = failing_io_open
"""


class Faults:
    """The switch of the faults."""

    def __init__(self, home: Path, folder: Path) -> None:
        """Write the module.

        Args:
            home: Folder for it and for the switch; to be on PYTHONPATH.
            folder: Calls on files below this folder fail.
        """
        self._control, self._hit = home / "fault", home / "hit"
        text = _SITECUSTOMIZE.format(folder=str(folder), control=str(self._control), hit=str(self._hit))
        (home / "sitecustomize.py").write_text(text)

    def on(self, who: str, call: str, errno: int) -> None:
        """Let a call (`open`, `stat`, `read` or `fork`) of one kind of process fail."""
        self._hit.unlink(missing_ok=True)
        new = self._control.with_suffix(".new")
        new.write_text(f"{who} {call} {errno}")
        new.replace(self._control)

    def off(self) -> None:
        """Let every call succeed again."""
        self._control.unlink(missing_ok=True)

    @property
    def was_hit(self) -> bool:
        """Whether a call failed since the fault was switched on."""
        return self._hit.exists()
