"""Transient errors of system calls in the processes of a server, switched on and off by a file.

`install` writes a `sitecustomize.py` that every Python process of the server runs at its start. A fault hits
calls on files below one folder, for `fork` every new process, and for `message` every line between two
processes. It stays in force until `off`.
"""

from pathlib import Path

MESSAGES = {
    "empty": "",
    "cut off": '{"VersionLoaded":{"version":"20',
    "deep": "[" * 100_000,
    "deep in a message": '{"HideItems":{"id_kind":"string","failure":"","ids":'
    + "[" * 900
    + "]" * 900
    + "}}",
    "many digits": '{"CommandFailed":{"failure":' + "9" * 5_000 + "}}",
    "infinite": "1e400",
    "not a number": "NaN",
    "other types": '{"VersionLoaded":{"version":7,"thread_pools":[]}}',
    "other fields": '{"LoadVersion":{"path":"/","file":{}}}',
    "unknown": '{"Unknown":{}}',
    "oversized": " " * ((1 << 24) + 1),
    "several lines": "{}\n" * 10,
}
"""Texts in place of a message."""

_SITECUSTOMIZE = """
import builtins, io, json, os, stat, subprocess, sys

FOLDER = {folder!r}
CONTROL, HIT = {control!r}, {hit!r}
MESSAGES = {messages!r}
WORDS = " ".join(sys.orig_argv)
KINDS = ("worker", "version_check", "recall_process")
WHO = next((kind for kind in KINDS if f"re4.serving." in WORDS and WORDS.split("re4.serving.")[1]
            .split()[0].endswith(kind)), "supervisor")
_open, _stat, _io_open, _read, _fork = os.open, os.stat, io.open, os.read, subprocess._fork_exec
_listdir, _scandir, _dumps = os.listdir, os.scandir, json.dumps


def number_of(call):
    try:
        control = _open(CONTROL, os.O_RDONLY)
    except OSError:
        return None
    who, wanted, number = _read(control, 1000).decode().split()
    os.close(control)
    return int(number) if who == WHO and wanted == call else None


def fail(call, path=None):
    number = number_of(call)
    if number is None:
        return
    if path is not None and os.path.isabs(os.fspath(path)) and not os.fspath(path).startswith(FOLDER):
        return
    os.close(_open(HIT, os.O_WRONLY | os.O_CREAT))
    raise OSError(number, os.strerror(number), path)


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


def failing_listdir(path="."):
    fail("list", None if isinstance(path, int) else path)
    return _listdir(path)


def failing_scandir(path="."):
    fail("list", None if isinstance(path, int) else path)
    return _scandir(path)


def damaged_dumps(value, **options):
    # A message, or a recall.
    number = number_of("message") if "separators" in options or isinstance(value, float) else None
    if number is None:
        return _dumps(value, **options)
    os.close(_open(HIT, os.O_WRONLY | os.O_CREAT))
    return MESSAGES[number]


def failing_fork(*args):
    fail("fork")
    return _fork(*args)


os.open, os.stat, os.read, subprocess._fork_exec = failing_open, failing_stat, failing_read, failing_fork
io.open = builtins.open = failing_io_open
os.listdir, os.scandir, json.dumps = failing_listdir, failing_scandir, damaged_dumps
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
        text = _SITECUSTOMIZE.format(
            folder=str(folder),
            control=str(self._control),
            hit=str(self._hit),
            messages=[MESSAGES[name] for name in sorted(MESSAGES)],
        )
        (home / "sitecustomize.py").write_text(text)

    def on(self, who: str, call: str, number: int) -> None:
        """Let a call of one kind of process fail.

        Args:
            who: `supervisor`, `worker`, `version_check` or `recall_process`.
            call: `open`, `stat`, `read`, `list`, `fork` or `message`.
            number: The `errno`; of a message, its place among the sorted `MESSAGES`.
        """
        self._hit.unlink(missing_ok=True)
        new = self._control.with_suffix(".new")
        new.write_text(f"{who} {call} {number}")
        new.replace(self._control)

    def off(self) -> None:
        """Let every call succeed again."""
        self._control.unlink(missing_ok=True)

    @property
    def was_hit(self) -> bool:
        """Whether a call failed since the fault was switched on."""
        return self._hit.exists()
