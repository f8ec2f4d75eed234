"""A full disk, a read-only file system, a moved clock, and a store that is away, beside a running server.

Refused calls are refused in words, retrieval goes on, nothing acknowledged is lost, and the server heals by
itself. The file systems are real ones, so without the right to mount these two parts are left out.
"""

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from file_systems import full, small_file_system
from findings import Findings
from moved_clock import MovedClock
from running_server import RunningServer, wait_until
from small_bundles import SmallVersion

from re4 import LiveItem, RetrievalClient, ServerError
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.settings import HistorySettings

FILE_SYSTEM_BYTES = 16 << 20
DAY_MS = 86_400_000
MAX_CALLS = 200
EVENTS_OF_A_CALL = 500
PROOF = "full and read-only disks, moved clocks"


class Shop:
    """Records and upserts by calls; knows what was acknowledged."""

    def __init__(self, version: SmallVersion) -> None:
        self.version = version
        self.num_refused = 0
        self.acknowledged: list[tuple[str, str]] = []
        self.items: list[str] = []
        self.sequence = 0
        self._number = 0

    def write(self, client: RetrievalClient, reason: str = "") -> None:
        """Record an event and upsert an item; with a reason, both must be refused for it."""
        self._number += 1
        user, item = f"user {self._number % 5}", self.version.ids[self._number % len(self.version.ids)]
        new = f"new {self._number}"
        if not reason:
            assert (
                client.record_events([user], [item], event_ids=[str(self._number)], times_ms=[now_ms()]) == 1
            )
            self.acknowledged.append((user, item))
            self.sequence = client.upsert_items([LiveItem(item_id=new)]).sequence
            self.items.append(new)
            return
        # A call that needs no new block of the disk may succeed: more of them cannot.
        with pytest.raises(ServerError, match=rf"(?is)UNAVAILABLE.*{reason}"):  # noqa: PT012
            for call in range(MAX_CALLS):
                users = [f"user {self._number} {call} {place}" for place in range(EVENTS_OF_A_CALL)]
                client.record_events(users, [item] * EVENTS_OF_A_CALL)
                self.acknowledged += [(user, item) for user in users]
        with pytest.raises(ServerError, match=rf"(?is)UNAVAILABLE.*{reason}"):  # noqa: PT012
            for call in range(MAX_CALLS):
                item_id = f"{new} {call}"
                self.sequence = client.upsert_items([LiveItem(item_id=item_id)]).sequence
                self.items.append(item_id)
        self.num_refused += 2

    def check(self, client: RetrievalClient) -> None:
        """Answers go on, and have all acknowledged items."""
        wait_until(lambda: client.info()["live_sequence"] >= self.sequence)
        found = client.retrieve(self.version.ids[:3], 1_000).item_ids
        assert {id_ for id_ in found if id_.startswith("new")} == set(self.items)


def now_ms() -> int:
    return int(time.time() * 1e3)


def recorded_ms(client: RetrievalClient) -> int:
    """Record an event without a time; return the time that the server gave it."""
    client.forget_user("clock")
    client.record_events(["clock"], ["any"])
    return int(client.get_history("clock")[-1].time_ms)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def test_disks_and_clocks(tmp_path: Path, findings: Findings) -> None:
    version, folder = SmallVersion(), tmp_path / "disk"
    clock = MovedClock(tmp_path / "clock")
    with ExitStack() as stack:
        is_mounted = stack.enter_context(small_file_system(folder, FILE_SYSTEM_BYTES))
        if not is_mounted:
            findings.add(PROOF, "full disk and read-only file system", "left out: no right to mount")
        bundles = folder / "bundles"
        version.publish(bundles)
        shop = Shop(version)

        def started() -> RunningServer:
            return RunningServer(bundles, "--max-num-candidates", "1000", env=clock.environment)

        with started() as server, RetrievalClient(server.address, timeout_s=20.0) as client:
            shop.write(client)
            for day in (-1, 1, 0):
                clock.jump_to(day)
                # Each process reads the clock's file once a second.
                wait_until(lambda day=day: abs(recorded_ms(client) - now_ms() - day * DAY_MS) < DAY_MS / 2)
                shop.write(client)
                shop.check(client)
            if is_mounted:
                with full(folder):
                    shop.write(client, "no space left")
                    shop.check(client)
                wait_until(lambda: client.record_events(["healed"], version.ids[:1]) == 1)
                shop.write(client)
                shop.check(client)
        if is_mounted:
            remount(folder, "ro")
            with started() as server, RetrievalClient(server.address, timeout_s=20.0) as client:
                shop.check(client)
                assert client.get_history("user 1")
                shop.write(client, "read-only")
                shop.check(client)
                remount(folder, "rw")
                wait_until(lambda: client.record_events(["healed"], version.ids[:1]) == 1)
                shop.write(client)
                shop.check(client)
        store = LmdbStore(LmdbEnvironment(folder / "bundles.histories", 1 << 30), HistorySettings().bounds)
        stored = [
            (user, event.item)
            for user, events in store.users()
            for event in events
            if user.startswith("user")
        ]
        lost = set(shop.acknowledged) - set(stored)
        twice = len(stored) - len(set(stored))
        store.close()
    findings.add(PROOF, "acknowledged events and items", 2 * len(shop.acknowledged))
    findings.add(PROOF, "calls refused in words", shop.num_refused)
    findings.add(PROOF, "acknowledged events lost", len(lost), allowed="0")
    findings.add(PROOF, "events kept twice", twice, allowed="0")
    assert not lost
    assert not twice
