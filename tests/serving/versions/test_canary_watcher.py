"""Following `CANARY`: from the start of a server on, and without a wait for the check of another version."""

import asyncio
from pathlib import Path

import pytest
from small_bundles import SmallVersion

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.canary import Canary, end_canary, start_canary
from re4.common.errors import BundleDamagedError
from re4.serving.versions.canary_watcher import CanaryWatcher


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Two versions, and a third one, which is live."""
    return [SmallVersion(seed=seed, num_items=20).publish(tmp_path) for seed in range(3)]


def test_a_canary_that_is_there_at_the_start_of_a_server_is_loaded(names: list[str], tmp_path: Path) -> None:
    start_canary(tmp_path, Canary(version=names[0], share=0.5))
    checked: list[str] = []

    async def check(path: Path) -> None:
        checked.append(path.name)

    watcher = CanaryWatcher(tmp_path, check, lambda: None)
    asyncio.run(watcher.poll())
    assert checked == names[:1]
    assert watcher.canary == Canary(version=names[0], share=0.5)


def test_the_end_of_a_canary_does_not_wait_for_the_check_of_the_next_one(
    names: list[str], tmp_path: Path
) -> None:
    changes: list[Canary | None] = []

    async def main() -> None:
        hangs = asyncio.Event()

        async def check(path: Path) -> None:
            if path.name == names[1]:
                hangs.set()
                await asyncio.Event().wait()

        watcher = CanaryWatcher(
            tmp_path, check, lambda: changes.append(watcher.canary), poll_interval_s=0.001
        )
        start_canary(tmp_path, Canary(version=names[0], share=1.0))
        await watcher.poll()
        start_canary(tmp_path, Canary(version=names[1], share=1.0))
        polling = asyncio.create_task(watcher.poll())
        await hangs.wait()
        end_canary(tmp_path, is_promoted=False)
        await polling
        await watcher.poll()

    asyncio.run(main())
    assert changes == [Canary(version=names[0], share=1.0), None]


def test_a_current_that_cannot_be_read_ends_no_canary(names: list[str], tmp_path: Path) -> None:
    async def check(_: Path) -> None:
        pass

    watcher = CanaryWatcher(tmp_path, check, lambda: None)
    start_canary(tmp_path, Canary(version=names[0], share=1.0))
    asyncio.run(watcher.poll())
    (tmp_path / CURRENT).write_bytes(b"\xff\xfe")
    asyncio.run(watcher.poll())
    assert watcher.canary == Canary(version=names[0], share=1.0)


def test_a_refused_canary_ends_the_one_before_and_a_passing_error_does_not(
    names: list[str], tmp_path: Path
) -> None:
    errors: list[Exception] = [OSError(24, "too many open files"), BundleDamagedError("bad")]

    async def check(path: Path) -> None:
        if path.name == names[1]:
            raise errors[0]

    watcher = CanaryWatcher(tmp_path, check, lambda: None)
    start_canary(tmp_path, Canary(version=names[0], share=1.0))
    asyncio.run(watcher.poll())
    start_canary(tmp_path, Canary(version=names[1], share=1.0))
    asyncio.run(watcher.poll())
    assert watcher.canary == Canary(version=names[0], share=1.0)
    del errors[0]
    watcher.poller.read_now()
    asyncio.run(watcher.poll())
    assert (watcher.canary, watcher.failure) == (None, "bad")
