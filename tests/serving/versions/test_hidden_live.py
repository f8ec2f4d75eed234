"""`re4 items hide` while a server with several workers runs: all of them follow, and keep to it."""

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from running_server import RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.bundle.items_cli import hide, unhide
from re4.bundle.layout import HIDDEN
from re4.bundle.versions_cli import rollback

OPTIONS = ("--poll-interval-s", "0.02", "--num-processes", "2", "--fallback", "popular")
HISTORY = [4, 9, 30]
_MOST_TRIES = 20_000
"""Far more than needed: the bound ends a test that would otherwise never end."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return tmp_path


def answers(address: str, history: list[object]) -> Iterator[list[object]]:
    """What many connections get, one after another: they meet all workers."""
    for _ in count():
        with RetrievalClient(address) as client:
            yield client.retrieve(history, 10).item_ids


def wait_until_all_answer(address: str, history: list[object], expected: list[object]) -> None:
    """Until twenty connections in a row, which meet both workers all but surely, get the same answer."""
    in_a_row = 0
    for _, found in zip(range(_MOST_TRIES), answers(address, history), strict=False):
        in_a_row = in_a_row + 1 if found == expected else 0
        if in_a_row == 20:
            return
    raise AssertionError(f"still {found}, expected {expected}")


def test_all_workers_follow_keep_to_it_and_show_it(shop: Path) -> None:
    version, second = SmallVersion(seed=1), SmallVersion(seed=2)
    first = version.publish(shop)
    history = [version.ids[row] for row in HISTORY]
    hidden = version.best(HISTORY, 3)
    expected = [version.ids[row] for row in version.best(HISTORY, 10, hidden)]

    with RunningServer(shop, *OPTIONS, "--metrics-address", "127.0.0.1:0") as running:
        hide(shop, [*(version.ids[row] for row in hidden), "nobody"])
        wait_until_all_answer(running.address, history, expected)

        # A replacement begins with what is hidden.
        num_lines = running.num_lines
        os.kill(min(running.workers()), signal.SIGKILL)
        running.wait_for(r"worker \d: serving ", after=num_lines)
        wait_until_all_answer(running.address, history, expected)

        # A damaged list: the last good one is kept, and it shows.
        good = (shop / HIDDEN).read_bytes()
        for damaged in (b"[" * 200_000, good[:-5]):
            num_lines = running.num_lines
            (shop / HIDDEN).write_bytes(damaged)
            running.wait_for("the newest list is not used", after=num_lines)
            wait_until_all_answer(running.address, history, expected)
        with RetrievalClient(running.address) as client:
            info = client.info()
        assert info["num_hidden_items"] == 3
        assert HIDDEN in str(info["hidden_failure"])

        # Another version: what is hidden stays so in it.
        (shop / HIDDEN).write_bytes(good)
        second.publish(shop)
        theirs = [second.ids[row] for row in second.best(HISTORY, 10, hidden)]
        wait_until_all_answer(running.address, history, theirs)
        rollback(shop, first)
        wait_until_all_answer(running.address, history, expected)

        unhide(shop, [version.ids[row] for row in hidden])
        wait_until_all_answer(
            running.address, history, [version.ids[row] for row in version.best(HISTORY, 10)]
        )
        with RetrievalClient(running.address) as client:
            assert client.info()["num_hidden_items"] == 0
            assert not client.info()["hidden_failure"]


def test_a_server_begins_with_what_is_hidden_and_not_with_a_damaged_list(shop: Path) -> None:
    version = SmallVersion(seed=1)
    version.publish(shop)
    hide(shop, [version.ids[row] for row in version.popular_rows[:3]])
    with RunningServer(shop, *OPTIONS) as running, RetrievalClient(running.address) as client:
        popular = client.retrieve([], 5)
        assert popular.item_ids == [version.ids[row] for row in version.popular_rows[3:8]]
    (shop / HIDDEN).write_text("damage")
    refused = RunningServer(shop, *OPTIONS)
    assert refused.wait() == 1
    assert HIDDEN in refused.log
