"""One at a time, by lock files that work on local and on network file systems.

    bundles/.changing      a roll-back or a pruning: those who change which versions there are, or which is
                           live, wait for each other
    bundles/.rebuilding    a rebuild: a second one does not wait, but says who is at work

A lock is a small file that says whose it is. It is written under a name of its own and gets the lock's name
by a hard link, which only one can win and which network file systems do atomically. While it is held its
time is moved on every few seconds. A lock is *stale* where its process is known to be dead (the same machine
since the same start), or where on another machine it gave no sign of life for `STALE_AFTER_S`, by the file
system's own clock. A stale lock is removed by one at a time; an owner that was only suspended finds out by
`Job.check`, before it publishes.

A publisher does not take part: what it does is safe at any instant (see `publish.py`).
"""

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from re4.bundle.safe_files import open_folder
from re4.common.errors import BundleBusyError, BundleError

_log = logging.getLogger(__name__)

CHANGING: Final = ".changing"
REBUILDING: Final = ".rebuilding"

STALE_AFTER_S: Final = 300.0
"""Without a sign of life for so long, an owner that cannot be looked at counts as dead."""

_HEARTBEAT_S: Final = 15.0
_PATIENCE_S: Final = 60.0
"""How long a roll-back or a pruning waits for another one."""
_POLL_S: Final = 0.05
_MAX_BYTES: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock."""

    host: str
    boot: str
    """Which start of which machine, and whose process ids: whether `pid` can be looked up here."""
    pid: int
    born: str
    """When the process began, in the kernel's ticks: a later process of the same id has another."""
    command: str
    since: str
    """ISO 8601, UTC."""
    token: str
    """Of this one holding."""


class Job:
    """A lock that is held."""

    def __init__(self, bundles: Path, name: str, owner: Owner) -> None:
        self._lock = bundles / name
        self._owner = owner
        self._is_over = threading.Event()

    def check(self) -> None:
        """Make sure that the lock is still this job's: one that was suspended for long may have lost it.

        Raises:
            BundleBusyError: another job has broken the lock.
        """
        found, _ = _look(self._lock)
        if found is None or found.token != self._owner.token:
            raise BundleBusyError(
                f"{self._lock}: this job gave no sign of life for {STALE_AFTER_S:g} seconds, and another "
                "one took its place. Nothing was published; start it again when the other has ended"
            )

    def _beat(self) -> None:
        while not self._is_over.wait(_HEARTBEAT_S):
            try:
                self.check()
                os.utime(self._lock)
            except (OSError, BundleError):
                continue  # the file system may come back; who lost the lock hears of it in `check`

    @contextmanager
    def _beating(self) -> Iterator[None]:
        beat = threading.Thread(target=self._beat, name="lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            self._is_over.set()
            beat.join()


@contextmanager
def exclusive(bundles: Path) -> Iterator[None]:
    """Hold the bundle directory, for a short change, while the block runs; wait for others before.

    Raises:
        BundleError: no such directory.
        BundleBusyError: another one has held it for a minute.
    """
    with _held(bundles, CHANGING, "a change of versions", patience_s=_PATIENCE_S):
        yield


@contextmanager
def one_job(bundles: Path, command: str) -> Iterator[Job]:
    """Be the only rebuild of a bundle directory while the block runs.

    Args:
        bundles: The bundle directory, which must exist.
        command: What to tell others is at work.

    Raises:
        BundleError: no such directory.
        BundleBusyError: another rebuild is at work; the message says whose, where and since when.
    """
    with _held(bundles, REBUILDING, command, patience_s=0) as job:
        yield job


@contextmanager
def _held(bundles: Path, name: str, command: str, *, patience_s: float) -> Iterator[Job]:
    with open_folder(bundles):
        pass
    owner = _this_process(command)
    job = Job(bundles, name, owner)
    try:
        try:
            _take(bundles, name, owner, patience_s)
            _sweep(bundles, name)
        except OSError as error:
            raise BundleError(f"{bundles / name}: cannot be locked ({error})") from error
        with job._beating():
            yield job
    finally:
        # Also where taking it was interrupted half way: only what is ours is removed.
        _release(bundles / name, owner)


def _take(bundles: Path, name: str, owner: Owner, patience_s: float) -> None:
    """Become the owner; BundleBusyError where another one is, and stays it."""
    lock, mine = bundles / name, bundles / f"{name}.{owner.token}"
    until = monotonic() + patience_s
    mine.write_text(json.dumps(asdict(owner)), encoding="utf-8")
    try:
        while True:
            try:
                os.link(mine, lock)
                return
            except FileExistsError:
                pass
            holder, age_s = _look(lock, clock=mine)
            if holder is not None and holder.token == owner.token:
                return  # the link was made, only its answer got lost
            if age_s is None:
                continue  # let go of just now
            if _why_stale(holder, age_s):
                _break(lock, mine)
            elif monotonic() >= until:
                raise BundleBusyError(_busy(lock, holder, age_s))
            else:
                sleep(_POLL_S)
    finally:
        mine.unlink(missing_ok=True)


def _release(lock: Path, owner: Owner) -> None:
    (lock.parent / f"{lock.name}.{owner.token}").unlink(missing_ok=True)
    with suppress(OSError):  # found stale by the next one
        holder, _ = _look(lock)
        if holder is not None and holder.token == owner.token:
            lock.unlink(missing_ok=True)


def _break(lock: Path, mine: Path) -> None:
    """Take a stale lock away. One at a time looks whether it still is stale, and removes it."""
    breaking = lock.parent / f"{lock.name}.breaking"
    try:
        os.link(mine, breaking)
    except FileExistsError:
        holder, age_s = _look(breaking, clock=mine)
        if age_s is not None and _why_stale(holder, age_s):
            breaking.unlink(missing_ok=True)
        sleep(_POLL_S)
        return
    try:
        holder, age_s = _look(lock, clock=mine)
        if age_s is not None and (why := _why_stale(holder, age_s)):
            _log.info(f"{lock}: broken, {why}")
            lock.unlink(missing_ok=True)
    finally:
        breaking.unlink(missing_ok=True)


def _sweep(bundles: Path, name: str) -> None:
    """Remove what those who died while taking the lock left."""
    for left in bundles.glob(f"{name}.*"):
        found, age_s = _look(left, clock=bundles / name)
        if age_s is not None and _why_stale(found, age_s):
            left.unlink(missing_ok=True)


def _look(lock: Path, *, clock: Path | None = None) -> tuple[Owner | None, float | None]:
    """Whose a lock file is (None where it does not say), and its age in seconds (None where it is gone).

    Args:
        lock: The file.
        clock: A file that was written just now: the file system's own time. None for this machine's.
    """
    try:
        written_s = lock.stat().st_mtime
        if clock is not None:
            os.utime(clock)
        now_s = datetime.now(UTC).timestamp() if clock is None else clock.stat().st_mtime
        content: Any = json.loads(lock.read_bytes()[:_MAX_BYTES])
    except FileNotFoundError:
        return None, None
    except ValueError:
        return None, max(0.0, now_s - written_s)
    expected = {field.name: field.type for field in fields(Owner)}
    is_owner = isinstance(content, dict) and content.keys() == expected.keys()
    if not is_owner or any(not isinstance(content[key], kind) for key, kind in expected.items()):  # type: ignore[arg-type]
        return None, max(0.0, now_s - written_s)
    return Owner(**content), max(0.0, now_s - written_s)


def _why_stale(holder: Owner | None, age_s: float) -> str | None:
    """Why a lock no longer counts, in words; None where it does."""
    if holder is not None and holder.boot == _boot():
        if _birth(holder.pid) == holder.born:
            return None
        return f"its process {holder.pid} ({holder.command}) is dead"
    if age_s < STALE_AFTER_S:
        return None
    who = "its owner" if holder is None else f"process {holder.pid} on {holder.host} ({holder.command})"
    return f"{who} gave no sign of life for {age_s:.0f} seconds"


def _busy(lock: Path, holder: Owner | None, age_s: float) -> str:
    if holder is None:
        return (
            f"{lock}: held, but it does not say by whom; it was touched {age_s:.0f} seconds ago and counts "
            f"as left behind after {STALE_AFTER_S:g}. Try again then"
        )
    held_s = (datetime.now(UTC) - datetime.fromisoformat(holder.since)).total_seconds()
    return (
        f"{lock.parent}: {holder.command} is at work: process {holder.pid} on {holder.host}, since "
        f"{holder.since} ({held_s:.0f} seconds), last sign of life {age_s:.0f} seconds ago. Nothing was "
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
    """This start of this machine, and this family of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not a Linux: owners are told apart by their signs of life alone
        return f"{socket.gethostname()} {secrets.token_hex(8)}"


def _birth(pid: int) -> str | None:
    """When a process began; None where it is dead."""
    try:
        # After the name, which may hold anything: the state is the third field, the start the twenty-second.
        words = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return None if words[0] in "ZX" else words[19]
    except (OSError, IndexError):
        return None
