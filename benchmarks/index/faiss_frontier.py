"""Frontiers of the kinds of index that the product builds, measured as index tuning measures them.

Legend: N items, D embedding.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.index.inputs import INTERESTS, THRESHOLDS, VECTORS
from re4.common.files import write_json
from re4.exporting.index.build import build_index, family_of
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.index_file import write_index
from re4.exporting.index.index_names import RECIPES
from re4.exporting.index.tuning import Queries

_K_FACTORS = (1, 1.5, 2, 4, 8)
_ENOUGH_RECALL = 0.99
_TOO_SLOW = 4
_SLOWEST_US = 20_000


def frontier_of(
    kind: str, folder: Path, *, num_requests: int, num_candidates: int, threads: list[int]
) -> dict[str, Any]:
    """Build a kind, unless it is built, and measure it over its settings.

    Args:
        kind: A name in `RECIPES` or a FAISS factory string.
        folder: As `inputs.prepare` fills it; keeps the built index.
        num_requests: The first so many requests are used.
        num_candidates: M.
        threads: Numbers of threads to search with.
    """
    vectors_ND = np.load(folder / VECTORS, mmap_mode="r")
    interests_QKD = np.load(folder / INTERESTS)[:num_requests]
    built, facts = _build(kind, vectors_ND, folder)
    thresholds_Q = np.load(folder / THRESHOLDS)[:num_requests]
    queries = Queries(interests_QKD, vectors_ND, num_candidates, thresholds_Q)
    return {
        "engine": kind,
        "version": f"faiss {faiss.__version__}",
        **facts,
        "points": [
            {
                "threads": num_threads,
                "search_parameters": dict(point.settings),
                "recall": point.recall,
                "request_us": point.request_us,
            }
            for num_threads in threads
            for point in _points(built, queries, num_threads)
        ],
    }


def _points(built: BuiltIndex, queries: Queries, num_threads: int) -> Iterator[Any]:
    ladders = built.ladders(queries.num_candidates)
    queries.measure(built, ladders[0][0], num_threads=num_threads)  # warms up: pages and caches
    fastest = np.inf
    for ladder in ladders:
        if ladder[0].get("k_factor", 1) not in _K_FACTORS:
            continue
        for settings in ladder:
            step = queries.measure(built, settings, num_threads=num_threads)
            yield from step
            enough = [point.request_us for point in step if point.recall >= _ENOUGH_RECALL]
            fastest = min([fastest, *enough])
            if enough or step[0].request_us > min(_TOO_SLOW * fastest, _SLOWEST_US):
                break


def _build(kind: str, vectors_ND: NDArray[np.float32], folder: Path) -> tuple[BuiltIndex, dict[str, Any]]:
    num_items, dim = vectors_ND.shape
    factory = RECIPES[kind](num_items, dim) if kind in RECIPES else kind
    path, facts = folder / f"{factory}.faiss", folder / f"{factory}.json"
    if not facts.exists():
        began = time.monotonic()
        built = build_index(factory, vectors_ND)
        seconds = time.monotonic() - began
        write_index(built.index, path)
        write_json(
            facts, {"how": factory, "build_s": seconds, "bytes_per_item": path.stat().st_size / num_items}
        )
    found = json.loads(facts.read_text(encoding="utf-8"))
    index = faiss.read_index(str(path))
    return BuiltIndex(index=index, factory=factory, family=family_of(factory, dim)), found
