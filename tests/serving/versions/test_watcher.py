"""Following `CURRENT`: each writing of it is looked at once; what fails stays out until the next."""

import asyncio
from pathlib import Path

import pytest
from damaged_versions import point_current_at
from small_bundles import SmallVersion

from re4.bundle.layout import CURRENT
from re4.common.errors import BundleDamagedError, BundleError
from re4.serving.versions.watcher import GoLive, Refused, Watcher


class Check:
    """A check that refuses what it is told to, and notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.bad: set[str] = set()

    async def __call__(self, path: Path) -> None:
        self.seen.append(path.name)
        if path.name in self.bad:
            raise BundleDamagedError(f"{path.name} is bad")


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Three versions; the last is live."""
    return [SmallVersion(num_items=20, seed=seed).publish(tmp_path) for seed in range(3)]


def watcher_at_first(bundles: Path, check: Check) -> Watcher:
    watcher = Watcher(bundles, check)
    asyncio.run(watcher.first())
    return watcher


def poll(watcher: Watcher) -> GoLive | Refused | None:
    return asyncio.run(watcher.poll())


def test_nothing_new_is_nothing_to_do(tmp_path: Path, names: list[str], check: Check) -> None:
    watcher = watcher_at_first(tmp_path, check)
    assert poll(watcher) is None
    point_current_at(tmp_path, names[2])  # written again, the same
    assert poll(watcher) is None
    assert check.seen == [names[2]]


def test_a_new_version_is_checked_once_and_goes_live(tmp_path: Path, names: list[str], check: Check) -> None:
    watcher = watcher_at_first(tmp_path, check)
    point_current_at(tmp_path, names[0])
    assert poll(watcher) == GoLive(path=tmp_path / names[0])
    assert poll(watcher) is None
    assert check.seen == [names[2], names[0]]


def test_a_refused_version_is_checked_again_only_when_current_is_written_anew(
    tmp_path: Path, names: list[str], check: Check
) -> None:
    watcher = watcher_at_first(tmp_path, check)
    check.bad.add(names[0])
    point_current_at(tmp_path, names[0])
    assert poll(watcher) == Refused(version=names[0], failure=f"{names[0]} is bad")
    assert poll(watcher) is None
    assert poll(watcher) is None
    check.bad.clear()
    assert poll(watcher) is None
    point_current_at(tmp_path, names[0])
    assert poll(watcher) == GoLive(path=tmp_path / names[0])
    assert check.seen == [names[2], names[0], names[0]]


def test_going_back_to_what_is_live_ends_a_refusal_without_a_check(
    tmp_path: Path, names: list[str], check: Check
) -> None:
    watcher = watcher_at_first(tmp_path, check)
    check.bad.add(names[0])
    point_current_at(tmp_path, names[0])
    assert isinstance(poll(watcher), Refused)
    point_current_at(tmp_path, names[2])
    assert poll(watcher) == GoLive(path=tmp_path / names[2])
    assert poll(watcher) is None
    assert check.seen == [names[2], names[0]]


def test_a_current_that_names_nothing_is_a_refusal(tmp_path: Path, names: list[str], check: Check) -> None:
    watcher = watcher_at_first(tmp_path, check)
    (tmp_path / CURRENT).unlink()
    refused = poll(watcher)
    assert isinstance(refused, Refused)
    assert refused.version == CURRENT
    assert poll(watcher) is None
    point_current_at(tmp_path, names[1])
    assert poll(watcher) == GoLive(path=tmp_path / names[1])


def test_the_first_version_must_pass(tmp_path: Path, names: list[str], check: Check) -> None:
    check.bad.add(names[2])
    with pytest.raises(BundleDamagedError, match="is bad"):
        watcher_at_first(tmp_path, check)
    with pytest.raises(BundleError, match="not a folder that can be read"):
        watcher_at_first(tmp_path / "nowhere", check)
