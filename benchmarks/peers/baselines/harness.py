"""The harness of all engines: K searches, one pool of their results, true scores; recall and time.

An engine runs in an environment of its own and communicates by files. A folder goes in, with `vectors.npy`
[N, D], `interests.npy` [Q, K, D] and `thresholds.npy` [Q], the score of each request's last exact candidate;
a JSON file with points comes out. Built indexes stay in the folder and are used again. Merging and
judging are the product's own (`re4.bundle.rescoring` and `exact_search`, which need NumPy alone), so that
engines differ only by the items that they find and by their speed.

Legend: B requests, Q requests, K interests, S results of a search, D embedding, N items, M candidates.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from re4.bundle.exact_search import reaches
from re4.bundle.rescoring import best_candidates, rescore

GRAPH_WIDTHS = (100, 150, 200, 300, 400, 600, 800, 1600)
"""Search widths of a graph, to be tried."""
_K_FACTORS = (1, 1.5, 2)
_POOL_FACTORS = (1.25, 1.5, 2, 3)
_ENOUGH_RECALL = 0.99
_TOO_SLOW = 4


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine."""

    name: str
    """Of its package."""
    how: str
    """The build, in words of its documentation."""
    build: Callable[[np.ndarray, int], Any]
    """Of vectors, with so many threads."""
    save: Callable[[Any, Path], None]
    load: Callable[[Path, np.ndarray], Any]
    settings: Iterable[Mapping[str, int]]
    """To be tried, cheapest first."""
    search: Callable[[Any, np.ndarray, int, Mapping[str, int], int], tuple[np.ndarray, np.ndarray]]
    """Rows and scores, [B K, S] each and the larger the better, of (index, queries, S, setting, threads)."""


@dataclass(frozen=True, kw_only=True)
class _Workload:
    engine: Engine
    index: Any
    vectors_ND: np.ndarray
    requests_QKD: np.ndarray
    thresholds_Q: np.ndarray
    num_candidates: int
    batch_size: int

    def points(self, threads: int) -> list[dict[str, Any]]:
        """Measure settings, cheapest first, until one has enough recall or is too slow to be of use."""
        points: list[dict[str, Any]] = []
        for k_factor in _K_FACTORS:
            for setting in self.engine.settings:
                step = self._measure(setting, k_factor, threads)
                points += step
                reached = [point["request_us"] for point in points if point["recall"] >= _ENOUGH_RECALL]
                if any(point["recall"] >= _ENOUGH_RECALL for point in step) or (
                    reached and step[0]["request_us"] > _TOO_SLOW * min(reached)
                ):
                    break
        return points

    def _measure(self, setting: Mapping[str, int], k_factor: float, threads: int) -> list[dict[str, Any]]:
        clock = time.thread_time if threads == 1 else time.perf_counter
        num_interests, dim = self.requests_QKD.shape[1:]
        factors = [factor for factor in _POOL_FACTORS if factor < num_interests * k_factor]
        factors.append(num_interests * k_factor)
        seconds: dict[float, list[float]] = {factor: [] for factor in factors}
        recalls: dict[float, list[float]] = {factor: [] for factor in factors}
        num_results = ceil(self.num_candidates * k_factor)
        for start in range(-self.batch_size, len(self.requests_QKD), self.batch_size):
            # The first batch twice: once to warm up.
            batch = self.requests_QKD[max(start, 0) :][: self.batch_size]
            queries = np.ascontiguousarray(batch.reshape(-1, dim))
            began = clock()
            rows, scores = self.engine.search(self.index, queries, num_results, setting, threads)
            search_s = clock() - began
            shape = (len(batch), num_interests, -1)
            rows = np.ascontiguousarray(rows, np.int64).reshape(shape)
            scores = np.ascontiguousarray(scores, np.float32).reshape(shape)
            for factor in factors:
                began = clock()
                pools = rescore(scores, rows, batch, self.vectors_ND, ceil(self.num_candidates * factor))
                _, found, _ = best_candidates(pools, self.num_candidates)
                if start >= 0:
                    seconds[factor].append((search_s + clock() - began) / len(batch))
                    least = self.thresholds_Q[start : start + len(batch), None]
                    recalls[factor].append(float(reaches(found, least).mean()))
        return [
            {
                "threads": threads,
                "search_parameters": {**setting, "k_factor": k_factor, "pool_factor": factor},
                "recall": float(np.mean(recalls[factor])),
                "request_us": float(np.median(seconds[factor])) * 1e6,
            }
            for factor in factors
        ]


def run(engine: Engine) -> None:
    """Run the whole of an engine's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--num-candidates", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--build-only", action="store_true")
    words = parser.parse_args()
    vectors_ND = np.load(words.folder / "vectors.npy", mmap_mode="r")
    path, facts = words.folder / f"{engine.name}.index", words.folder / f"{engine.name}.json"
    if not facts.exists():
        began = time.monotonic()
        index = engine.build(np.array(vectors_ND), len(os.sched_getaffinity(0)))
        seconds = time.monotonic() - began
        engine.save(index, path)
        facts.write_text(json.dumps({"build_s": seconds, "how": engine.how}))
        del index
    if words.build_only:
        return
    workload = _Workload(
        engine=engine,
        index=engine.load(path, vectors_ND),
        vectors_ND=vectors_ND,
        requests_QKD=np.load(words.folder / "interests.npy")[: words.num_requests],
        thresholds_Q=np.load(words.folder / "thresholds.npy")[: words.num_requests],
        num_candidates=words.num_candidates,
        batch_size=words.batch_size,
    )
    files = path.rglob("*") if path.is_dir() else [path]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    result = {
        "engine": engine.name,
        "version": version(engine.name),
        **json.loads(facts.read_text()),
        "bytes_per_item": num_bytes / len(vectors_ND),
        "points": [point for text in words.threads.split(",") for point in workload.points(int(text))],
    }
    words.out.write_text(json.dumps(result))
