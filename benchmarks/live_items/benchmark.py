"""Live items: lag, latency and recall.

Legend: N items of the version, R live items, D embedding.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, process_time, sleep
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.common.machine import describe_machine
from re4.benchmarks.common.report import command_line, now_utc, write_report
from re4.benchmarks.load_generator.writes import event_load, item_load, live_item_id
from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import read_histories
from re4.bundle.layout import CURRENT, GOLDEN, HISTORIES
from re4.bundle.live_items.records import Record, Upsert
from re4.bundle.publishing.current import live_version
from re4.bundle.scoring.exact_search import exact_search
from re4.bundle.verify import read_manifest
from re4.common.server_process import ServerProcess
from re4.serving.client.client import RetrievalClient
from re4.serving.client.item_values import LiveItem
from re4.serving.host.threads import limit_garbage_collection
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.versions.snapshot import Snapshot, load_snapshot

REPORT_FILE: Final = "live-items.json"
_NUM_CANDIDATES: Final = 100
_NUM_RECALL_QUERIES: Final = 400
_NUM_BATCHES: Final = 20
"""Of each number of live items in a turn of the pipeline."""
_PIPELINE_TURNS: Final = 40
_NUM_TURNS: Final = 3
_CALL_EVENTS: Final = 50
_POLL_S: Final = 0.005
_NOISE: Final = 0.3
"""A live vector is that of an item plus so many times that of another, at the norm of the first."""


def measure(
    bundles: Path,
    out: Path,
    *,
    nums_items: Sequence[int],
    num_changes: int,
    updates_per_s: float,
    events_per_s: float,
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Measure, and write and return the report."""
    report: dict[str, Any] = {
        "began_at": now_utc(),
        "command": command_line(),
        "machine": describe_machine(),
        "load_average": os.getloadavg(),
    }
    with TemporaryDirectory(prefix="re4-live-items-") as folder:
        linked = _linked(bundles, Path(folder) / "bundles")
        report["version"] = read_manifest(live_version(linked)).model_dump(
            include={"version", "index", "items"}, mode="json", exclude={"index": {"frontier"}}
        )
        report["pipeline"] = _pipeline(linked, nums_items)
        with _servers(linked) as clients:
            report["lag_ms"] = _lag(clients, num_changes)
            addresses = [client.address for client in clients]
            for name, loads in (
                ("under_updates", {"items_per_s": updates_per_s, "events_per_s": 0.0}),
                ("under_updates_and_events", {"items_per_s": updates_per_s, "events_per_s": events_per_s}),
            ):
                report[name] = _under_writes(addresses, clients[0], loads, rate, seconds, linked)
    write_report(out, {REPORT_FILE: report})
    return report


def _linked(bundles: Path, folder: Path) -> Path:
    """Return a bundle directory with the live version, by hard links, so that changes go elsewhere."""
    version = live_version(bundles)
    (folder / version.name).mkdir(parents=True)
    for path in version.iterdir():
        try:
            os.link(path, folder / version.name / path.name)
        except OSError:  # another file system
            (folder / version.name / path.name).write_bytes(path.read_bytes())
    (folder / CURRENT).write_text(f"{version.name}\n", encoding="ascii")
    return folder


@contextmanager
def _servers(bundles: Path) -> Iterator[list[RetrievalClient]]:
    with (
        ServerProcess(bundles, "--num-processes", "1") as first,
        ServerProcess(bundles, "--num-processes", "1") as second,
        RetrievalClient(first.address) as one,
        RetrievalClient(second.address) as other,
    ):
        yield [one, other]


def _lag(clients: Sequence[RetrievalClient], num_changes: int) -> dict[str, float]:
    """Measure from the reply of a change until both servers show it, with a pause of any length between."""
    kind = str(clients[0].info()["item_id_kind"])
    rng, lags_ms = np.random.default_rng(0), []
    for number in range(num_changes):
        item = LiveItem(item_id=live_item_id(kind, number))
        sequence = clients[number % 2].upsert_items([item]).sequence
        acknowledged_s = perf_counter()
        for client in clients:
            while client.info()["live_sequence"] < sequence:
                sleep(_POLL_S)
        lags_ms.append((perf_counter() - acknowledged_s) * 1e3)
        sleep(float(rng.uniform(0, 0.1)))
    return {name: round(float(np.percentile(lags_ms, at)), 1) for name, at in (("p50", 50), ("p99", 99))}


def _under_writes(
    addresses: Sequence[str],
    client: RetrievalClient,
    loads: Mapping[str, float],
    rate: float,
    seconds: float,
    bundles: Path,
) -> dict[str, Any]:
    """Measure Retrieve on one server in windows with and without writes, in turns.

    Items change on another server, and events are recorded on the same one.
    """
    kind, history = str(client.info()["item_id_kind"]), _a_history(bundles)
    item_ids = client.retrieve(history, _NUM_CANDIDATES).item_ids
    latencies: dict[bool, list[float]] = {False: [], True: []}
    counts = dict.fromkeys(loads, 0)
    lengths_s = 0.0
    for turn in range(2 * _NUM_TURNS):
        with ExitStack() as stack:
            running = {}
            if turn % 2 and loads["items_per_s"]:
                per_s = loads["items_per_s"]
                load = item_load(addresses[1], kind, items_per_s=per_s, call_items=ceil(per_s / 10))
                running["items_per_s"] = stack.enter_context(load)
            if turn % 2 and loads["events_per_s"]:
                per_s = loads["events_per_s"]
                load = event_load(addresses[0], item_ids, events_per_s=per_s, call_events=_CALL_EVENTS)
                running["events_per_s"] = stack.enter_context(load)
            before = {name: count.value for name, count in running.items()}
            began_s = due_s = monotonic()
            while monotonic() - began_s < seconds:
                sleep(max(0.0, due_s - monotonic()))
                client.retrieve(history, _NUM_CANDIDATES)
                latencies[turn % 2 == 1].append((monotonic() - due_s) * 1e3)
                due_s += 1 / rate
            for name, count in running.items():
                counts[name] += count.value - before[name]
            lengths_s += monotonic() - began_s if running else 0.0
    p99 = {key: float(np.percentile(values, 99)) for key, values in latencies.items()}
    return {
        **{name: round(count / max(lengths_s, 1e-9)) for name, count in counts.items()},
        "rate": rate,
        "num_calls": len(latencies[True]),
        "p50_ms_without": round(float(np.median(latencies[False])), 2),
        "p50_ms_with": round(float(np.median(latencies[True])), 2),
        "p99_ms_without": round(p99[False], 2),
        "p99_ms_with": round(p99[True], 2),
        "ratio": round(p99[True] / p99[False], 2),
    }


def _pipeline(bundles: Path, nums_items: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the pipeline with live items, in turns with none."""
    path = live_version(bundles)
    manifest = read_manifest(path)
    loaded = load_snapshot(path, manifest, max_batch_size=16)
    queries, num_left_out = _answered_by_index(loaded, _queries(path))
    snapshots = {0: loaded, **{num: _with_live(loaded, num) for num in nums_items}}
    for snapshot in snapshots.values():  # pages are read, and buffers allocated, before anything is measured
        for start in range(0, len(queries), 16):
            snapshot.pipeline.run(queries[start : start + 16])
    limit_garbage_collection()  # as in a worker
    times_ms: dict[tuple[int, int], list[float]] = {}
    for turn in range(_PIPELINE_TURNS):
        for num_users in (1, 16):
            for num_items, snapshot in snapshots.items():
                times = times_ms.setdefault((num_items, num_users), [])
                for number in range(_NUM_BATCHES):
                    batch = [
                        queries[((turn * _NUM_BATCHES + number) * num_users + place) % len(queries)]
                        for place in range(num_users)
                    ]
                    began_s = process_time()
                    snapshot.pipeline.run(batch)
                    times.append((process_time() - began_s) * 1e3)
    points = []
    for (num_items, num_users), times in times_ms.items():
        p99, without = (float(np.percentile(each, 99)) for each in (times, times_ms[0, num_users]))
        recall = _recall(snapshots[num_items], queries) if num_items else (None, None)
        points.append(
            {
                "num_items": num_items,
                "num_users": num_users,
                "p50_ms": round(float(np.median(times)), 3),
                "p99_ms": round(p99, 3),
                "p99_over_none": round(p99 / without, 2),
                "queries_left_out": num_left_out,
                "recall": recall[0],
                "recall_of_live_items": recall[1],
            }
        )
    return points


def _answered_by_index(loaded: Snapshot, queries: Sequence[Query]) -> tuple[list[Query], int]:
    """Return the queries for which the index finds enough items, and the number of others.

    For one of the others, all items are scored: that takes a hundred times as long.
    """
    kept = []
    for query in queries:
        (result,) = loaded.pipeline.run([query])
        assert isinstance(result, QueryResult)
        if not result.times.num_exact_searches:
            kept.append(query)
    return kept, len(queries) - len(kept)


def _with_live(loaded: Snapshot, num_items: int) -> Snapshot:
    """Return a version with so many live items, whose vectors are like those of the version."""
    rng, vectors_ND = np.random.default_rng(0), loaded.vectors_ND
    first, second = vectors_ND[rng.integers(0, len(vectors_ND), (2, num_items))]
    mixed = first + _NOISE * second
    mixed *= np.linalg.norm(first, axis=1, keepdims=True) / np.linalg.norm(mixed, axis=1, keepdims=True)
    overlay, space = loaded.new_overlay(), loaded.manifest.items.space
    kind = loaded.item_ids.kind
    overlay.apply(
        [
            Record(number + 1, 0, Upsert(live_item_id(kind, number), {}, vector_D, space))
            for number, vector_D in enumerate(mixed.astype(np.float32))
        ]
    )
    while (job := overlay.next_job()) is not None:
        overlay.finish(job, job.run())
    return loaded.with_live(overlay.view())


def _recall(snapshot: Snapshot, queries: Sequence[Query]) -> tuple[float, float]:
    """Return the share of the exact best items that are found: of all, and of live items."""
    live = snapshot.live
    assert live is not None
    num_items = len(snapshot.vectors_ND)
    vectors = np.concatenate([snapshot.vectors_ND, live.vectors_RD])
    num_found, num_live_found, num_live = 0, 0, 0
    chosen = queries[:_NUM_RECALL_QUERIES]
    for query in chosen:
        (result,) = snapshot.pipeline.run([query])
        assert isinstance(result, QueryResult)
        _, exact = exact_search(result.interests_KD[None], vectors, _NUM_CANDIDATES)
        rows: NDArray[np.int64] = np.where(
            exact[0] < num_items, exact[0], exact[0] - num_items + live.first_row
        )
        is_found = np.isin(rows, result.merged.rows_M)
        is_live = rows >= live.first_row
        num_found += int(is_found.sum())
        num_live += int(is_live.sum())
        num_live_found += int((is_found & is_live).sum())
    return round(num_found / (len(chosen) * _NUM_CANDIDATES), 4), round(num_live_found / max(num_live, 1), 4)


def _queries(path: Path) -> list[Query]:
    if (path / HISTORIES).exists():
        rows_PL, lengths_P = read_histories(path / HISTORIES)
    else:
        golden = GoldenQueries.read(path / GOLDEN)
        rows_PL, lengths_P = golden.rows_QL, golden.lengths_Q
    return [
        Query(history_rows_L=rows_L[:length], num_candidates=_NUM_CANDIDATES)
        for rows_L, length in zip(rows_PL, lengths_P.tolist(), strict=True)
    ]


def _a_history(bundles: Path) -> list[Any]:
    path = live_version(bundles)
    items = read_manifest(path).items
    from re4.bundle.ids.id_map import ItemIds

    ids: list[Any] = ItemIds.open(path, items.id_kind, items.num_items).ids(_queries(path)[0].history_rows_L)
    return ids
