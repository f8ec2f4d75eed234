"""Workers, rotations and supervisors are killed while events are recorded: each event is kept once.

Every call is repeated until it is acknowledged, as a caller would do. In the end each event is in the store
once, and in the parts of the event log once.
"""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
from findings import Findings
from running_server import DEADLINE_S, PAUSE_S, RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient, ServerError
from re4.histories.event_parts import rotate
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.settings import HistorySettings

NUM_CALLERS = 3
EVENTS_OF_A_CALL = 5
CALLS_OF_A_USER = 8
"""A user's events stay within the bound of the store."""


class Caller(threading.Thread):
    """Records events, each call again and again until it is acknowledged."""

    def __init__(self, number: int, server_of: "dict[str, str]", base_ms: int) -> None:
        super().__init__()
        self.acknowledged: list[tuple[str, int, int]] = []
        self.is_stopped = False
        self._number = number
        self._server_of = server_of
        self._base_ms = base_ms

    def run(self) -> None:
        count = 0
        while not self.is_stopped:
            places = range(count, count + EVENTS_OF_A_CALL)
            user = f"caller-{self._number}-{count // (EVENTS_OF_A_CALL * CALLS_OF_A_USER)}"
            self._record([(user, place, self._base_ms + place) for place in places])
            count += EVENTS_OF_A_CALL

    def _record(self, events: list[tuple[str, int, int]]) -> None:
        users, items, times_ms = zip(*events, strict=True)
        ids = [f"{self._number}-{item}" for item in items]
        while True:
            try:
                with RetrievalClient(self._server_of["address"], timeout_s=5.0) as client:
                    client.record_events(users, items, times_ms=times_ms, event_ids=ids)
            except ServerError:
                time.sleep(PAUSE_S)
                continue
            self.acknowledged += events
            return


def children(pid: int) -> dict[int, str]:
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def kill_one(server: RunningServer, kind: str) -> bool:
    """Kill a worker, a rotation or the supervisor; False where there is none of the kind now."""
    pids = (
        [server.pid]
        if kind == "supervisor"
        else [pid for pid, words in children(server.pid).items() if kind in words]
    )
    for pid in pids[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def test_no_acknowledged_event_is_lost_and_none_is_kept_twice(
    tmp_path: Path, is_long: bool, findings: Findings
) -> None:
    num_kills = 200 if is_long else 3
    rng = random.Random(7)
    SmallVersion(id_kind="int").publish(tmp_path / "bundles")
    options = ("--num-processes", "2", "--event-part-s", "1")
    server_of: dict[str, str] = {}
    callers = [Caller(number, server_of, int(time.time() * 1e3)) for number in range(NUM_CALLERS)]
    kinds = {"processes.worker": 0, "histories rotate": 0, "supervisor": 0}
    server = RunningServer(tmp_path / "bundles", *options).__enter__()
    server_of["address"] = server.address
    try:
        for caller in callers:
            caller.start()
        while sum(kinds.values()) < num_kills:
            time.sleep(rng.random() * 0.5)
            kind = min(kinds, key=lambda each: kinds[each] + rng.random())
            kinds[kind] += kill_one(server, kind)
            if kind == "supervisor":
                server.wait()
                server = RunningServer(tmp_path / "bundles", *options).__enter__()
                server_of["address"] = server.address
    finally:
        for caller in callers:
            caller.is_stopped = True
        for caller in callers:
            caller.join(DEADLINE_S)
        server.stop()
    folder = tmp_path / "bundles.histories"
    store = LmdbStore(LmdbEnvironment(folder, 1 << 30), HistorySettings().bounds)
    rotate(store.event_log, folder / "events")
    acknowledged = sorted(event for caller in callers for event in caller.acknowledged)
    assert len(acknowledged) > num_kills
    proof = "kill -9 while events are recorded"
    for kind, number in kinds.items():
        findings.add(proof, f"kills of {kind}", number)
    findings.add(proof, "events", len(acknowledged))
    stored = sorted((user, event.item, event.time_ms) for user, events in store.users() for event in events)
    lost, twice = set(acknowledged) - set(stored), len(stored) - len(set(stored))
    findings.add(proof, "acknowledged events lost", len(lost), allowed="0")
    findings.add(proof, "events kept twice", twice, allowed="0")
    assert stored == acknowledged
    parts = pl.concat([pl.read_parquet(path) for path in (folder / "events").glob("*.parquet")])
    rows = parts.with_columns(pl.col("timestamp").dt.epoch("ms")).rows()
    assert sorted(rows) == acknowledged
