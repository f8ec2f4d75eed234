"""Locks of a bundle directory that hold on local and on network file systems.

    bundles/.changing      a roll-back, a pruning or a change of hidden items: each waits for the others
    bundles/.rebuilding    a rebuild: a second one does not wait, but reports which process is at work
    bundles/.live-writing  a write of live items: each waits for the others
    bundles/.live-compacting  a compaction of live items: a second one does not wait

A lock is a small file that names its owner. It is written under a name of its own and gets the lock's name by
a hard link, which only one process can win and which network file systems do atomically. While the lock is
held, a thread renews the file's modification time every few seconds. A lock is *stale* where its process is
known to be dead (same machine, same start of the machine), or where the owner is on another machine and has
not renewed it for `STALE_AFTER_S`, by the clock of the file system. One process at a time removes a stale
lock; an owner that was only suspended learns of it by `DirectoryLock.check`, before it publishes.

A publisher takes no lock: what it does is safe at any instant (see `publish.py`).

flufl.lock links in the same way, but does not replace this: two processes can break one stale lock, a process
that got the id of a dead owner keeps the lock held, and ages are taken from the clocks of two machines.
"""

import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Annotated, Final, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from re4.bundle.layout import MIRROR_URL
from re4.bundle.safe_files import open_folder, read_named
from re4.common.errors import BundleBusyError, BundleError, BundleReadOnlyError

_log = logging.getLogger(__name__)

CHANGING: Final = ".changing"
REBUILDING: Final = ".rebuilding"
LIVE_WRITING: Final = ".live-writing"
LIVE_COMPACTING: Final = ".live-compacting"

STALE_AFTER_S: Final = 300.0
"""A lock whose owner cannot be looked up is stale when it was not renewed for so long."""

_HEARTBEAT_S: Final = 15.0
_PATIENCE_S: Final = 60.0
"""How long a change waits for another one."""
_POLL_S: Final = 0.05
_LIVE_POLL_S: Final = 0.002
"""A write of live items holds its lock for some milliseconds."""
_MAX_BYTES: Final = 10_000


def _with_zone(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


class Owner(BaseModel):
    """The process that holds a lock."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str
    boot: str
    """Start of the machine and namespace of process ids, within which `pid` can be looked up."""
    pid: int
    born: str
    """When the process began, in the kernel's ticks: a later process of the same id has another."""
    command: str
    since: Annotated[str, AfterValidator(_with_zone)]
    """ISO 8601, UTC."""
    token: str
    """Differs each time that a lock is taken."""


class _LockFile(NamedTuple):
    """A lock file as it was read."""

    owner: Owner | None
    """None where the file does not name one."""
    age_s: float

    def why_stale(self) -> str | None:
        """Why the lock no longer counts, in words; None where it does."""
        owner = self.owner
        if owner is not None and owner.boot == _boot():
            if _birth(owner.pid) == owner.born:
                return None
            return f"its process {owner.pid} ({owner.command}) is dead"
        if self.age_s < STALE_AFTER_S:
            return None
        who = "its owner" if owner is None else f"process {owner.pid} on {owner.host} ({owner.command})"
        return f"{who} gave no sign of life for {self.age_s:.0f} seconds"


class DirectoryLock:
    """A lock of a bundle directory, held while its `with` block runs."""

    def __init__(self, path: Path, command: str, *, patience_s: float, poll_s: float = _POLL_S) -> None:
        self._path = path
        self._poll_s = poll_s
        self._owner = _this_process(command)
        self._own_file = path.with_name(f"{path.name}.{self._owner.token}")
        self._patience_s = patience_s
        self._is_released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lock", daemon=True)

    def __enter__(self) -> Self:
        with open_folder(self._path.parent):
            pass
        try:
            self._acquire()
            self._remove_leftovers()
            self._renewal.start()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise BundleError(f"{self._path}: cannot be locked ({error})") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_released.set()
        self._renewal.join()
        self._release()

    def check(self) -> None:
        """Make sure that the lock is still held: a process that was suspended for long may have lost it.

        Raises:
            BundleBusyError: another process has taken the lock.
        """
        if not self._is_ours(_read(self._path)):
            raise BundleBusyError(
                f"{self._path}: this job gave no sign of life for {STALE_AFTER_S:g} seconds, and another "
                "one took its place. Nothing was published; start it again when the other has ended"
            )

    def _is_ours(self, found: _LockFile | None) -> bool:
        return found is not None and found.owner is not None and found.owner.token == self._owner.token

    def _acquire(self) -> None:
        until = monotonic() + self._patience_s
        self._own_file.write_text(self._owner.model_dump_json(), encoding="utf-8")
        try:
            while True:
                with suppress(FileExistsError):
                    os.link(self._own_file, self._path)
                    return
                found = _read(self._path, clock=self._own_file)
                if self._is_ours(found):
                    return  # the link was made, but its reply was lost
                if found is None:
                    continue  # released just now
                if found.why_stale():
                    _break(self._path, self._own_file)
                elif monotonic() >= until:
                    raise BundleBusyError(_busy(self._path, found))
                else:
                    sleep(self._poll_s)
        finally:
            self._own_file.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove the files of processes that died while they took the lock."""
        for left in self._path.parent.glob(f"{self._path.name}.*"):
            found = _read(left, clock=self._path)
            if found is not None and found.why_stale():
                left.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._is_released.wait(_HEARTBEAT_S):
            # The file system may come back; `check` reports a lock that was lost.
            with suppress(OSError, BundleError):
                self.check()
                os.utime(self._path)

    def _release(self) -> None:
        self._own_file.unlink(missing_ok=True)
        with suppress(OSError):  # otherwise the next process finds it stale
            if self._is_ours(_read(self._path)):
                self._path.unlink(missing_ok=True)


def check_not_mirror(bundles: Path) -> None:
    """Refuse a change of a directory that follows object storage.

    Raises:
        BundleReadOnlyError: it does.
    """
    content = read_named(bundles, MIRROR_URL, max_bytes=_MAX_BYTES) if bundles.is_dir() else None
    if content is not None:
        url = content.decode("utf-8", "replace").strip()
        raise BundleReadOnlyError(
            f"{bundles} is a mirror of {url}, and only follows it: nothing was changed. Make the change "
            f"there, such as by `re4 items add FILE --bundles {url}`"
        )


def change_lock(bundles: Path) -> DirectoryLock:
    """Return the lock for a short change of a bundle directory. Entering waits for other changes.

    Entering raises BundleError where there is no such directory, and BundleBusyError where another process
    has held the lock for a minute.

    Raises:
        BundleReadOnlyError: the directory is a mirror, as for the other locks.
    """
    check_not_mirror(bundles)
    return DirectoryLock(bundles / CHANGING, "a change of versions", patience_s=_PATIENCE_S)


def rebuild_lock(bundles: Path, command: str) -> DirectoryLock:
    """Return the lock of the only rebuild of a bundle directory.

    Entering raises BundleError where there is no such directory, and BundleBusyError where another rebuild is
    at work: the message names its process, machine and start.

    Args:
        bundles: The bundle directory.
        command: The name by which others report this process.
    """
    check_not_mirror(bundles)
    return DirectoryLock(bundles / REBUILDING, command, patience_s=0)


def live_items_lock(bundles: Path, *, patience_s: float = _PATIENCE_S) -> DirectoryLock:
    """Return the lock of the only writer of live items. Entering waits for others, as `change_lock`."""
    check_not_mirror(bundles)
    return DirectoryLock(
        bundles / LIVE_WRITING, "a write of live items", patience_s=patience_s, poll_s=_LIVE_POLL_S
    )


def live_compaction_lock(bundles: Path) -> DirectoryLock:
    """Return the lock of the only compaction of live items. Entering fails where another one is at work."""
    check_not_mirror(bundles)
    return DirectoryLock(bundles / LIVE_COMPACTING, "a compaction of live items", patience_s=0)


def _break(path: Path, own_file: Path) -> None:
    """Remove a stale lock. One process at a time checks that it still is stale, and removes it."""
    breaking = path.with_name(f"{path.name}.breaking")
    try:
        os.link(own_file, breaking)
    except FileExistsError:
        found = _read(breaking, clock=own_file)
        if found is not None and found.why_stale():
            breaking.unlink(missing_ok=True)
        sleep(_POLL_S)
        return
    try:
        found = _read(path, clock=own_file)
        if found is not None and (why := found.why_stale()):
            _log.info(f"{path}: broken, {why}")
            path.unlink(missing_ok=True)
    finally:
        breaking.unlink(missing_ok=True)


def _read(path: Path, *, clock: Path | None = None) -> _LockFile | None:
    """Read a lock file; None where there is none.

    Args:
        path: The file.
        clock: A file that this process owns: gives the file system's own time. None for this machine's.
    """
    try:
        # Not blocked by a pipe, and not led elsewhere by a link.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        written_s = os.fstat(descriptor).st_mtime
        if clock is not None:
            os.utime(clock)
        now_s = time() if clock is None else clock.stat().st_mtime
        content = os.read(descriptor, _MAX_BYTES)
    except FileNotFoundError:
        return None
    finally:
        os.close(descriptor)
    owner = None
    with suppress(ValidationError):
        owner = Owner.model_validate_json(content)
    return _LockFile(owner, max(0.0, now_s - written_s))


def _busy(path: Path, found: _LockFile) -> str:
    owner = found.owner
    if owner is None:
        return (
            f"{path}: held, but it does not say by whom; it was touched {found.age_s:.0f} seconds ago and "
            f"counts as left behind after {STALE_AFTER_S:g}. Try again then"
        )
    held_s = (datetime.now(UTC) - datetime.fromisoformat(owner.since)).total_seconds()
    return (
        f"{path.parent}: {owner.command} is at work: process {owner.pid} on {owner.host}, since "
        f"{owner.since} ({held_s:.0f} seconds), last sign of life {found.age_s:.0f} seconds ago. Nothing was "
        "done; try again when it has ended"
    )


def _this_process(command: str) -> Owner:
    return Owner(
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        born=_birth(os.getpid()) or "",
        command=command,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=secrets.token_hex(8),
    )


def _boot() -> str:
    """Name this start of this machine, and this namespace of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: owners are judged by their age alone
        return f"{socket.gethostname()} {secrets.token_hex(8)}"


def _birth(pid: int) -> str | None:
    """When a process began; None where it is dead. (psutil's time moves where the clock is set.)"""
    try:
        # After the name, which may hold anything: the state is the third field, the start the twenty-second.
        words = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return None if words[0] in "ZX" else words[19]
    except (OSError, IndexError):
        return None
