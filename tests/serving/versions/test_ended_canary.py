"""A canary that ended is freed at once, and its files are no longer mapped."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallVersion, load

from re4.bundle.hidden_ids import HiddenIds
from re4.serving.versions.live_items_follower import LiveItemsFollower
from re4.serving.versions.live_version import LiveVersion


@pytest.fixture
def without_collector() -> Iterator[None]:
    """A worker runs the garbage collector rarely."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_a_version_whose_live_items_are_no_longer_followed_is_freed(tmp_path: Path) -> None:
    parts: list[weakref.ref[Any]] = []

    async def main() -> None:
        snapshot = load(SmallVersion(num_items=20), tmp_path)
        follower = LiveItemsFollower(
            LiveVersion(), poll_interval_s=1, on_lag=lambda _: None, on_changed=lambda _: None
        )
        follower.swap(snapshot, await follower.prepare(snapshot, HiddenIds()))
        following = asyncio.create_task(follower.follow())
        await asyncio.sleep(0)
        parts.extend(map(weakref.ref, (snapshot, snapshot.item_ids)))
        follower.stop()
        following.cancel()

    asyncio.run(main())
    assert [part() for part in parts] == [None, None]
