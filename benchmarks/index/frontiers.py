"""Frontiers of the kinds of index that the product builds, and of other engines.

The product's are measured as index tuning measures them; another engine runs as a script in an environment of
its own. Legend: N items, D embedding.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.common.peer_environments import BASELINES, missing, python_of
from re4.benchmarks.index.inputs import INTERESTS, THRESHOLDS, VECTORS
from re4.common.files import write_json
from re4.exporting.index.build import build_index, family_of
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.index_file import write_index
from re4.exporting.index.index_names import RECIPES
from re4.exporting.index.tuning import Queries

PEERS: Final = ("hnswlib", "usearch", "voyager", "scann", "svs")
_ENVIRONMENT: Final = ".venv"
_K_FACTORS = (1, 1.5, 2, 4, 8)
_ENOUGH_RECALL = 0.99
_TOO_SLOW = 4
_SLOWEST_US = 20_000


def frontiers_of(
    kind: str,
    folder: Path,
    *,
    num_requests: int,
    num_candidates: int,
    threads: list[int],
    has_equal_budget: bool,
) -> Iterator[dict[str, Any]]:
    """Build a kind, a name in `RECIPES` or a factory string, unless it is built; measure its settings.

    The folder is as `inputs.prepare` fills it, and keeps the built index. The first requests are used.

    Yields:
        The figures of the kind, and with `has_equal_budget` those without a budget that the interests share.
    """
    vectors_ND = np.load(folder / VECTORS, mmap_mode="r")
    interests_QKD = np.load(folder / INTERESTS)[:num_requests]
    built, facts = _build(kind, vectors_ND, folder)
    thresholds_Q = np.load(folder / THRESHOLDS)[:num_requests]
    queries = Queries(interests_QKD, vectors_ND, num_candidates, thresholds_Q)
    budgets = {kind: True}
    if has_equal_budget and built.family.shares_lists:
        budgets[f"{kind} (equal budget)"] = False
    for engine, shares in budgets.items():
        yield {
            "engine": engine,
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
                for point in _points(built, queries, num_threads, shares=shares)
            ],
        }


def _points(built: BuiltIndex, queries: Queries, num_threads: int, *, shares: bool) -> Iterator[Any]:
    ladders = built.ladders(queries.num_candidates, queries.interests_QKD if shares else None)
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
    return BuiltIndex(index=index, factory=factory, family=family_of(factory, dim), is_native=True), found


def peer_frontiers(
    names: Sequence[str],
    folder: Path,
    *,
    num_requests: int,
    num_candidates: int,
    threads: Sequence[int],
    limit_s: float,
) -> Iterator[dict[str, Any]]:
    """Run engines one after another, each for `limit_s` seconds at most, building included.

    The folder is as `inputs.prepare` fills it. Yields the figures of an engine, or the reason to skip it.
    """
    options = {
        "--threads": ",".join(map(str, threads)),
        "--num-candidates": str(num_candidates),
        "--num-requests": str(num_requests),
    }
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "points.json"
            command: list[Path | str] = [
                python_of(_ENVIRONMENT),
                BASELINES / "engines.py",
                name,
                folder.resolve(),
                out,
            ]
            command += chain.from_iterable(options.items())
            if (problem := missing(_ENVIRONMENT) or _problem(command, limit_s)) is not None:
                yield {"engine": name, "skipped": problem}
            else:
                yield json.loads(out.read_text(encoding="utf-8"))


def _problem(command: Sequence[Path | str], limit_s: float) -> str | None:
    """Run a command; return why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {limit_s:g} s"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"ended with {done.returncode}: {last[-200:]}" if done.returncode else None
