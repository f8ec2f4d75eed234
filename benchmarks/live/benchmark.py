"""The measurement of `re4 bench live`.

CPU times are those of the worker process. Rounds with and without events alternate, so that a machine that
becomes slower or faster meanwhile does not favour one of them.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from re4 import RetrievalClient
from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.common.report import command_line, now_utc, write_report
from re4.benchmarks.live.options import LiveOptions
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.writes import event_load
from re4.common import console
from re4.common.server_process import ServerProcess
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.settings import HistorySettings
from re4.serving.histories.store import Event, StoredEvent, event_mark
from re4.serving.histories.user_record import with_events

JSON_FILE: Final = "live.json"
_BATCH_USERS: Final = 64
_NUM_CONNECTIONS: Final = 4
_APPENDED_USERS: Final = 1_000
_FILLED_USERS: Final = 5_000
"""Users of one commit."""

Figures = list[dict[str, Any]]


def run(options: LiveOptions) -> dict[str, Any]:
    """Measure the chosen parts, and write the report."""
    measured: dict[str, Callable[[LiveOptions, Path], Figures]] = {"events": _events, "users": _users}
    report: dict[str, Any] = {
        "schema_version": 1,
        "command": command_line(),
        "started_at": now_utc(),
        "machine": describe_machine(),
        "parts": {},
    }
    for part in options.parts.split(","):
        folder = Path(tempfile.mkdtemp(prefix="re4-bench-live-", dir=options.out.parent))
        try:
            console.print_line(f"measuring {part}")
            report["parts"][part] = measured[part](options, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        write_report(options.out, {JSON_FILE: report})
    return report


def _events(options: LiveOptions, folder: Path) -> Figures:
    with _server(options, f"--histories={folder / 'histories'}") as (server, client):
        histories = choose_histories(
            client.info(), data=options.data, ids=None, bundles=options.bundles, seed=options.seed
        ).ids
        item_ids = [item for history in histories for item in history]
        children = psutil.Process(server.pid).children()
        worker = next(each for each in children if "re4.serving.processes.worker" in each.cmdline())
        figures = [
            *_lone_calls(client, item_ids, options),
            *_throughput(server.address, worker, item_ids, options),
            *_next_answer(client, client, histories, options, "same server, LMDB"),
            *_look_up(client, worker, histories, options),
            *_other_calls(server.address, histories, item_ids, options),
        ]
    if options.valkey is not None:
        store = (f"--histories={options.valkey}", "--history-timeout-ms=5000")
        with (
            _server(options, *store, f"--event-log={folder / 'events-1'}") as (_, one),
            _server(options, *store, f"--event-log={folder / 'events-2'}") as (_, other),
        ):
            figures += _next_answer(one, other, histories, options, "another server, Redis store")
    return figures


def _lone_calls(client: RetrievalClient, item_ids: Sequence[Any], options: LiveOptions) -> Figures:
    seconds = []
    for place in range(options.num_lone_calls):
        began_s = time.monotonic()
        client.record_events([f"lone-{place}"], [item_ids[place % len(item_ids)]])
        seconds.append(time.monotonic() - began_s)
    return _percentiles("RecordEvents of one event, durable", seconds, "p50 <= 2 ms")


def _throughput(
    address: str, worker: psutil.Process, item_ids: Sequence[Any], options: LiveOptions
) -> Figures:
    end_s = time.monotonic() + options.duration_s

    def record(connection: int) -> int:
        num_events, place = 0, connection * 7919
        with RetrievalClient(address, timeout_s=60.0) as client:
            while time.monotonic() < end_s:
                places = range(place, place + options.call_events)
                users = [f"user-{each % 50_021}" for each in places]
                client.record_events(users, [item_ids[each % len(item_ids)] for each in places])
                num_events, place = num_events + options.call_events, place + options.call_events
        return num_events

    before_s, began_s = _cpu_s(worker), time.monotonic()
    with ThreadPoolExecutor(_NUM_CONNECTIONS) as pool:
        num_events = sum(pool.map(record, range(_NUM_CONNECTIONS)))
    wall_s, cpu_s = time.monotonic() - began_s, _cpu_s(worker) - before_s
    return [
        _figure("batched events/s, wall time", num_events / wall_s, ">= 20,000"),
        _figure("batched events per second of the worker's CPU time", num_events / cpu_s, ">= 20,000"),
    ]


def _next_answer(
    recording: RetrievalClient,
    asking: RetrievalClient,
    histories: Sequence[Any],
    options: LiveOptions,
    where: str,
) -> Figures:
    """Measure from the call of RecordEvents to the first answer that knows the event."""
    seconds, num_tries = [], 0
    for place in range(options.num_lone_calls):
        user, item = f"next-{options.seed}-{time.time_ns()}", histories[place % len(histories)][-1]
        began_s = time.monotonic()
        recording.record_events([user], [item])
        while True:
            num_tries += 1
            (found,) = asking.retrieve_batch([()], 5, user_ids=[user])
            if not isinstance(found, Exception):
                break
        seconds.append(time.monotonic() - began_s)
    tries = num_tries / options.num_lone_calls
    return [
        *_percentiles(f"event to the next answer, {where}", seconds, "<= 100 ms"),
        _figure(f"Retrieve calls until the event counts, {where}", tries, "1 on the same server"),
    ]


def _look_up(
    client: RetrievalClient, worker: psutil.Process, histories: Sequence[Any], options: LiveOptions
) -> Figures:
    """Compare BatchRetrieve by user ids with the same histories in the request, in turns, by CPU time."""
    users = list(enumerate(histories[:_BATCH_USERS]))
    for place, history in users:
        client.record_events([f"look-up-{place}"] * len(history), history)
    empty = [()] * len(users)
    user_ids = [f"look-up-{place}" for place, _ in users]
    taken: dict[str, list[float]] = {"history": [], "user id": []}
    for _ in range(2 * options.num_rounds):
        for kind in taken:
            before_s, num_calls = _cpu_s(worker), 0
            end_s = time.monotonic() + options.duration_s / 2
            while time.monotonic() < end_s:
                if kind == "history":
                    client.retrieve_batch([history for _, history in users], 10)
                else:
                    client.retrieve_batch(empty, 10, user_ids=user_ids)
                num_calls += 1
            taken[kind].append((_cpu_s(worker) - before_s) / num_calls / len(users) * 1e6)
    by_history, by_user = (float(np.median(taken[kind])) for kind in taken)
    length = float(np.mean([len(history) for _, history in users]))
    return [
        _figure("CPU time of a user in a BatchRetrieve with histories, us", by_history, ""),
        _figure("the same by user ids, us", by_user, ""),
        _figure(f"look-up of {length:.0f} events on top of it, us a user", by_user - by_history, "<= 30 us"),
    ]


def _other_calls(
    address: str, histories: Sequence[Any], item_ids: list[Any], options: LiveOptions
) -> Figures:
    """Measure Retrieve at a fixed rate, in turns with and without events."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    recorded = 0
    for _ in range(options.num_rounds):
        seconds[False] += _paced(address, histories, options)
        with event_load(address, item_ids, events_per_s=options.events_per_s, call_events=50) as count:
            before, began_s = count.value, time.monotonic()
            seconds[True] += _paced(address, histories, options)
            recorded += (count.value - before) / (time.monotonic() - began_s)
    p99 = {kind: float(np.quantile(seconds[kind], 0.99)) * 1e3 for kind in seconds}
    p50 = {kind: float(np.quantile(seconds[kind], 0.5)) * 1e3 for kind in seconds}
    return [
        _figure(f"events/s beside Retrieve at {options.rate:g}/s", recorded / options.num_rounds, ""),
        _figure("p50 of Retrieve without events, ms", p50[False], ""),
        _figure("p50 of Retrieve with events, ms", p50[True], ""),
        _figure("p99 of Retrieve without events, ms", p99[False], ""),
        _figure("p99 of Retrieve with events, ms", p99[True], ""),
        _figure("p99 with over p99 without", p99[True] / p99[False], "<= 1.25"),
    ]


def _paced(address: str, histories: Sequence[Any], options: LiveOptions) -> list[float]:
    """Call at a rate; return each latency from the time at which the call was due."""
    num_calls = int(options.rate * options.duration_s)
    with RetrievalClient(address, timeout_s=60.0) as client, ThreadPoolExecutor(16) as pool:
        client.retrieve(histories[0], 10)
        began_s = time.monotonic()

        def call(number: int) -> float:
            due_s = began_s + number / options.rate
            time.sleep(max(0.0, due_s - time.monotonic()))
            client.retrieve(histories[number % len(histories)], 10)
            return time.monotonic() - due_s

        return list(pool.map(call, range(num_calls)))


def _users(options: LiveOptions, folder: Path) -> Figures:
    """Fill an embedded store, and measure its size, look-ups and start."""
    bounds = HistorySettings().bounds
    rng = np.random.default_rng(options.seed)
    now_ms = int(time.time() * 1e3)

    def opened() -> LmdbStore:
        return LmdbStore(LmdbEnvironment(folder / "histories", 1 << 40), bounds)

    environment = LmdbEnvironment(folder / "histories", 1 << 40)
    store, began_s = LmdbStore(environment, bounds), time.monotonic()
    append_s = _append(store, min(_APPENDED_USERS, options.num_users), options.user_events, now_ms, rng)
    with console.progress("filling the store", options.num_users) as bar:
        for start in range(0, options.num_users, _FILLED_USERS):
            users = range(start, min(start + _FILLED_USERS, options.num_users))
            _fill(environment, users, options.user_events, now_ms, rng)
            bar.advance(len(users))
    fill_s = time.monotonic() - began_s
    num_bytes = store.health().num_bytes
    chosen = [_user_id(user) for user in rng.integers(0, options.num_users, 100 * _BATCH_USERS)]
    store.close()
    del store
    began_s = time.perf_counter()
    store = opened()
    store.newest_items(chosen[:1], now_ms)
    start_s = time.perf_counter() - began_s
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for start in range(0, len(chosen), _BATCH_USERS):
        store.newest_items(chosen[start : start + _BATCH_USERS], now_ms)
    look_up_s, look_up_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    store.close()
    name = f"{options.num_users:,} users of {options.user_events} events"
    return [
        _figure(f"{name}: bytes of the store", num_bytes, "stated"),
        _figure("bytes a user", num_bytes / options.num_users, "stated"),
        _figure("seconds to fill it", fill_s, ""),
        _figure("CPU time of an appended event, us", append_s * 1e6, ""),
        _figure("start: open and first look-up, ms", start_s * 1e3, "stated"),
        _figure("look-up in batches of 64, wall time, us a user", look_up_s / len(chosen) * 1e6, "stated"),
        _figure("the same, CPU time", look_up_cpu_s / len(chosen) * 1e6, "<= 30 us"),
    ]


def _append(
    store: LmdbStore, num_users: int, num_events: int, now_ms: int, rng: np.random.Generator
) -> float:
    """Append events as a server does; return the CPU time of an event in seconds."""
    began_s = time.process_time()
    for start in range(0, num_users, _BATCH_USERS):
        users = range(start, min(start + _BATCH_USERS, num_users))
        items = rng.integers(0, 1_000_000, (len(users), num_events)).tolist()
        events = [
            Event(_user_id(user), now_ms - num_events + place, event_mark("", item), item)
            for user, own in zip(users, items, strict=True)
            for place, item in enumerate(own)
        ]
        store.append(events, now_ms)
    return (time.process_time() - began_s) / num_users / num_events


def _fill(
    environment: LmdbEnvironment, users: range, num_events: int, now_ms: int, rng: np.random.Generator
) -> None:
    """Write the records of users, of whom nothing else is kept. The times and marks of all are equal."""
    times_ms = range(now_ms - num_events, now_ms)
    events = [StoredEvent(time_ms, event_mark("", time_ms), 0) for time_ms in times_ms]
    record, _ = with_events(None, events, HistorySettings().bounds, now_ms)
    head = record[: record.index(b"[0,0" if num_events > 1 else b"[0]")]
    items = rng.integers(0, 1_000_000, (len(users), num_events)).tolist()
    with environment.writing() as (transaction, databases):
        for user, own in zip(users, items, strict=True):
            record = head + json.dumps(own, separators=(",", ":")).encode()
            transaction.put(_user_id(user).encode(), record, db=databases[b"histories"])


def _user_id(number: int) -> str:
    return f"user-{number:010d}"


@contextmanager
def _server(options: LiveOptions, *words: str) -> Iterator[tuple[ServerProcess, RetrievalClient]]:
    with (
        ServerProcess(options.bundles, "--num-processes", "1", "--max-queue-ms", "2000", *words) as server,
        RetrievalClient(server.address, timeout_s=60.0) as client,
    ):
        yield server, client


def _percentiles(name: str, seconds: Sequence[float], goal: str) -> Figures:
    return [
        _figure(f"{name}, {label} ms", float(np.quantile(seconds, share)) * 1e3, goal)
        for label, share in (("p50", 0.5), ("p99", 0.99))
    ]


def _figure(figure: str, value: float, goal: str) -> dict[str, Any]:
    return {"figure": figure, "value": value, "goal": goal}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
