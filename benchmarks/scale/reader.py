"""Loading of a version as a server's worker does: time, memory, requests and id look-ups.

It runs in a child process, which holds the version until its pipe is closed, so that another process finds
pages shared.
"""

import contextlib
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import faiss
import numpy as np
import psutil

from re4.benchmarks.scale.stage_monitor import resident_bytes
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.verify import read_manifest
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import load_snapshot

_BATCH_SIZES: Final = (1, 8)
_SECONDS: Final = 10.0
CHUNK_IDS: Final = 1000


def main(path: Path, requests: Path, answers: Path, num_candidates: int, pipe: Connection) -> None:
    """Load a version's folder, answer an archive of `rows_PL` and `lengths_P` on one thread, and report.

    The rows of the answers are written, [P, M], -1 where there were fewer.
    """
    faiss.omp_set_num_threads(1)
    with np.load(requests) as archive:
        rows_PL, lengths_P = archive["rows_PL"], archive["lengths_P"]
    manifest = read_manifest(path)
    before = _memory()
    began = perf_counter()
    snapshot = load_snapshot(path, manifest, max_batch_size=max(_BATCH_SIZES))
    load_s = perf_counter() - began
    loaded = _memory()
    queries = [
        Query(history_rows_L=rows_L[:length], num_candidates=num_candidates)
        for rows_L, length in zip(rows_PL, lengths_P, strict=True)
    ]
    # Each twice: the first time pages are read, the second time they are in memory.
    batches = {
        f"{'warm' if again else 'first'}, batch of {size}": _time(snapshot.pipeline, queries, size)
        for size in _BATCH_SIZES
        for again in (False, True)
    }
    answered = _memory()
    found_PM = np.full((len(queries), num_candidates), -1, np.int64)
    for found_M, query in zip(found_PM, queries, strict=True):
        pipeline: Any = snapshot.pipeline
        rows = pipeline.run([query])[0].merged.rows_M
        found_M[: len(rows)] = rows
    np.save(answers, found_PM)
    ids = _ids(path, manifest.items.id_kind, manifest.items.num_items)
    memory = {"before": before, "loaded": loaded, "answered": answered, "after_ids": _memory()}
    pipe.send({"load_s": load_s, "requests": batches, "ids": ids, "memory": memory})
    with contextlib.suppress(EOFError):
        pipe.recv()


def _time(pipeline: Any, queries: list[Query], batch_size: int) -> dict[str, float]:
    times_ms, search_us = [], []
    began = perf_counter()
    for start in range(0, len(queries) - batch_size + 1, batch_size):
        batch_began = perf_counter()
        answers = pipeline.run(queries[start : start + batch_size])
        times_ms.append((perf_counter() - batch_began) * 1e3)
        search_us.append(answers[0].times.search_us)
        if perf_counter() - began > _SECONDS:
            break
    took_s = perf_counter() - began
    return {
        "num_requests": len(times_ms) * batch_size,
        **{f"p{percent}_ms": float(np.percentile(times_ms, percent)) for percent in (50, 90, 99)},
        "mean_search_ms": float(np.mean(search_us)) / 1e3,
        "requests_per_s": len(times_ms) * batch_size / took_s,
    }


def _ids(path: Path, kind: Any, num_items: int) -> dict[str, float]:
    """Time look-ups of ids both ways, a thousand in a call, of random rows of the whole catalogue."""
    began = perf_counter()
    item_ids = ItemIds.open(path, kind, num_items)
    figures = {"open_ms": (perf_counter() - began) * 1e3}
    rng = np.random.default_rng(7)
    for name in ("first", "warm"):
        rows = rng.integers(num_items, size=(200, CHUNK_IDS))
        began = perf_counter()
        found = [item_ids.ids(some) for some in rows]
        to_ids_s = perf_counter() - began
        began = perf_counter()
        back = [item_ids.rows(ids) for ids in found]
        to_rows_s = perf_counter() - began
        if not all((some == again).all() for some, again in zip(rows, back, strict=True)):
            raise AssertionError("an id came back as another row")
        figures[f"{name}_rows_to_ids_per_s"] = rows.size / to_ids_s
        figures[f"{name}_ids_to_rows_per_s"] = rows.size / to_rows_s
    return figures


def _memory() -> dict[str, int]:
    """Return own and mapped bytes, and those that are shared with another process."""
    own, mapped = resident_bytes()
    memory = psutil.Process().memory_full_info()
    return {"own_bytes": own, "mapped_bytes": mapped, "shared_bytes": memory.rss - memory.uss}
