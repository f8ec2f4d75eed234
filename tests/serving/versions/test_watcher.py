"""Following a bundle directory: each writing of `CURRENT` is checked once, and no error ends the watchers."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_versions import point_current_at
from small_bundles import SmallVersion

from re4.bundle.hidden_ids import HiddenIds, write_hidden
from re4.bundle.layout import CURRENT, HIDDEN
from re4.common.errors import BundleDamagedError, BundleError, BundleUnavailableError, ServerError
from re4.serving.versions.watcher import HiddenWatcher, VersionWatcher


class Followed:
    """A watcher, the checks it made and what it reported, under a clock that the test moves."""

    def __init__(self, bundles: Path) -> None:
        self.now_s = 0.0
        self.checked: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.reported: list[str | tuple[str, str]] = []
        self.watcher = VersionWatcher(
            bundles,
            self._check,
            on_live=self._go_live,
            on_refused=lambda version, failure: self.reported.append((version, failure)),
            clock_s=lambda: self.now_s,
        )

    async def _check(self, path: Path) -> None:
        self.checked.append(path.name)
        if path.name in self.errors:
            raise self.errors[path.name]

    def _go_live(self, path: Path) -> None:
        if CURRENT in self.errors:
            raise self.errors[CURRENT]
        self.reported.append(path.name)

    def first(self) -> None:
        asyncio.run(self.watcher.first())

    def poll(self, *, after_s: float = 0.0) -> list[str | tuple[str, str]]:
        """What was reported by a poll."""
        self.now_s += after_s
        self.reported.clear()
        asyncio.run(self.watcher.poll())
        return list(self.reported)


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Three versions; the last is live."""
    return [SmallVersion(num_items=20, seed=seed).publish(tmp_path) for seed in range(3)]


@pytest.fixture
def followed(tmp_path: Path, names: list[str]) -> Followed:
    followed = Followed(tmp_path)
    followed.first()
    return followed


def test_nothing_new_is_nothing_to_do(tmp_path: Path, names: list[str], followed: Followed) -> None:
    assert followed.poll() == []
    point_current_at(tmp_path, names[2])  # written again, the same
    assert followed.poll() == []
    assert followed.checked == [names[2]]


def test_a_new_version_is_checked_once_and_goes_live(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [names[0]]
    assert followed.poll(after_s=1000) == []
    assert followed.checked == [names[2], names[0]]


def test_a_refused_version_is_checked_again_only_when_current_is_written_anew(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    followed.errors[names[0]] = BundleDamagedError("it is bad")
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [(names[0], "it is bad")]
    assert followed.poll(after_s=1000) == []
    followed.errors.clear()
    assert followed.poll(after_s=1000) == []
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [names[0]]
    assert followed.checked == [names[2], names[0], names[0]]


def too_many_files() -> BundleError:
    """As the bundle's readers raise it: the cause is in the context alone."""
    try:
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError as error:
            raise BundleError(f"not a folder that can be read ({error.strerror})") from None
    except BundleError as error:
        return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (ServerError("the check took too long"), "the check took too long"),
        (too_many_files(), "not a folder that can be read (Too many open files)"),
        (ZeroDivisionError("nobody expected it"), "the read failed with ZeroDivisionError"),
    ],
    ids=["ENOMEM", "no result", "EMFILE", "unexpected"],
)
def test_a_check_that_fails_for_a_passing_reason_is_repeated_by_itself(
    error: Exception, reason: str, tmp_path: Path, names: list[str], followed: Followed
) -> None:
    followed.errors[names[0]] = error
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [(names[0], reason)]
    assert followed.poll() == []  # checked again, and the same is not reported again
    num_checks = len(followed.checked)
    assert followed.poll() == []
    assert len(followed.checked) == num_checks == 3  # later ones wait
    followed.errors.clear()
    assert followed.poll(after_s=301) == [names[0]]
    assert followed.poll(after_s=301) == []


def test_a_version_that_cannot_be_held_at_this_moment_goes_live_later(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    followed.errors[CURRENT] = BundleUnavailableError("no lease: try again")
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [(names[0], "no lease: try again")]
    followed.errors.clear()
    assert followed.poll(after_s=301) == [names[0]]
    assert followed.poll(after_s=301) == []


def test_going_back_to_what_is_live_ends_a_refusal_without_a_check(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    followed.errors[names[0]] = BundleDamagedError("it is bad")
    point_current_at(tmp_path, names[0])
    assert followed.poll() == [(names[0], "it is bad")]
    point_current_at(tmp_path, names[2])
    assert followed.poll() == [names[2]]
    assert followed.poll() == []
    assert followed.checked == [names[2], names[0]]


def test_a_current_that_names_nothing_is_a_refusal(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    (tmp_path / CURRENT).unlink()
    ((version, _),) = followed.poll()
    assert version == CURRENT
    assert followed.poll(after_s=1000) == []
    point_current_at(tmp_path, names[1])
    assert followed.poll() == [names[1]]


def test_a_live_version_that_is_taken_away_is_noticed(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    (tmp_path / names[2]).rename(tmp_path / "elsewhere")
    ((version, failure),) = followed.poll()
    assert version == CURRENT
    assert "there is no such folder" in failure
    (tmp_path / "elsewhere").rename(tmp_path / names[2])
    assert followed.poll() == [names[2]]


def test_the_first_version_must_pass(tmp_path: Path, names: list[str]) -> None:
    followed = Followed(tmp_path)
    followed.errors[names[2]] = BundleDamagedError("it is bad")
    with pytest.raises(BundleDamagedError, match="it is bad"):
        followed.first()
    with pytest.raises(BundleError, match="not a folder that can be read"):
        Followed(tmp_path / "nowhere").first()


def test_a_newer_version_does_not_wait_for_the_check_of_an_older_one(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of each version but the last hangs; CURRENT moves on when it has begun."""
    begun: list[str] = []
    cancelled: list[str] = []
    live: list[str] = []
    nexts = {names[0]: names[1]}

    async def check(path: Path) -> None:
        begun.append(path.name)
        if path.name in nexts:
            point_current_at(tmp_path, nexts[path.name])
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(path.name)

    watcher = VersionWatcher(
        tmp_path,
        check,
        on_live=lambda path: live.append(path.name),
        on_refused=lambda version, failure: pytest.fail(f"{version}: {failure}"),
        poll_interval_s=0.001,
    )

    async def main() -> None:
        assert (await watcher.first()).name == names[2]
        point_current_at(tmp_path, names[0])
        await watcher.poll()
        assert (live, cancelled) == ([], [names[0]])
        await watcher.poll()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert live == [names[1]]
    assert begun == [names[2], names[0], names[1]]
    nexts[names[2]] = names[0]
    nexts.pop(names[0])
    point_current_at(tmp_path, names[2])
    first = VersionWatcher(tmp_path, check, on_live=print, on_refused=lambda *_: None, poll_interval_s=0.001)
    assert asyncio.run(asyncio.wait_for(first.first(), 60)).name == names[0]  # at the start as well


def test_a_stop_is_not_lost_while_the_check_of_an_older_version_ends(
    tmp_path: Path, names: list[str], followed: Followed
) -> None:
    ends = asyncio.Event()

    async def check(_: Path) -> None:
        point_current_at(tmp_path, names[1])
        try:
            await asyncio.Event().wait()
        finally:
            ends.set()
            await asyncio.sleep(0.01)  # as long as the child takes to end

    followed.watcher._check = check
    followed.watcher._poll_interval_s = 0.001

    async def main() -> None:
        point_current_at(tmp_path, names[0])
        polling = asyncio.create_task(followed.watcher.poll())
        await ends.wait()
        polling.cancel()
        await asyncio.wait({polling})
        assert polling.cancelled()

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture
def changes() -> list[tuple[int, str]]:
    """Number of hidden items and failure, whenever something changed."""
    return []


@pytest.fixture
def hidden(tmp_path: Path, changes: list[tuple[int, str]]) -> HiddenWatcher:
    write_hidden(tmp_path, HiddenIds(ids=("a", "b")))
    watcher = HiddenWatcher(tmp_path, lambda: changes.append((len(watcher.hidden.ids), watcher.failure)))
    watcher.first()
    return watcher


def nested(depth: int) -> bytes:
    return b'{"schema_version": 1, "id_kind": "string", "ids": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, nested(200_000), nested(900), b"\xff", b"1" * 5_000, b'{"schema_version": 1e400}', b""],
    ids=["open", "deep", "less deep", "no text", "many digits", "infinite", "empty"],
)
def test_a_damaged_list_leaves_the_last_good_one(
    content: bytes, tmp_path: Path, hidden: HiddenWatcher, changes: list[Any]
) -> None:
    (tmp_path / HIDDEN).write_bytes(content)
    asyncio.run(hidden.poll())
    asyncio.run(hidden.poll())
    ((num_hidden, failure),) = changes
    assert num_hidden == 2
    assert failure
    with pytest.raises(BundleError):
        HiddenWatcher(tmp_path, lambda: None).first()
    write_hidden(tmp_path, HiddenIds(ids=("c",)))
    asyncio.run(hidden.poll())
    assert changes[1:] == [(1, "")]


def failing_once(error: Exception, read: Callable[[Path], HiddenIds]) -> Callable[[Path], HiddenIds]:
    errors = [error]

    def fail_or_read(bundles: Path) -> HiddenIds:
        if errors:
            raise errors.pop()
        return read(bundles)

    return fail_or_read


def test_a_list_that_could_not_be_read_for_a_moment_is_read_by_itself(
    tmp_path: Path, hidden: HiddenWatcher, changes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from re4.serving.versions import watcher

    failing = failing_once(OSError(errno.EIO, "Input/output error"), watcher.read_hidden)
    monkeypatch.setattr(watcher, "read_hidden", failing)
    write_hidden(tmp_path, HiddenIds(ids=("c",)))
    asyncio.run(hidden.poll())
    asyncio.run(hidden.poll())
    assert changes == [(2, "[Errno 5] Input/output error"), (1, "")]
