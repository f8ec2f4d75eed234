"""What every peer does alike: K searches, one pool of what they found, true scores; measured and judged.

A peer runs in an environment of its own, and speaks files. A folder goes in, with `vectors.npy` [N, D],
`interests.npy` [Q, K, D] and `thresholds.npy` [Q], the score of each request's last exact candidate; a JSON
file with points comes out. Built indexes stay in the folder, and are used again. Merging and judging are the
product's own (`re4.bundle.rescoring` and `exact_search`, which need NumPy alone), so that engines differ by
the items that they find and by their speed.

Legend: B requests, Q requests, K interests, S results of a search, D embedding, N items, M candidates.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from re4.bundle.exact_search import reaches
from re4.bundle.rescoring import best_candidates, rescore

_K_FACTORS = (1, 1.5, 2)
_POOL_FACTORS = (1.25, 1.5, 2, 3)
_ENOUGH_RECALL = 0.99
_TOO_SLOW = 4


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One engine."""

    version: str
    how: str
    """The build, in words of its documentation."""
    build: Callable[[np.ndarray, int], Any]
    """Of vectors, with so many threads."""
    save: Callable[[Any, Path], None]
    load: Callable[[Path, np.ndarray], Any]
    num_bytes: Callable[[Path], int]
    """Of the saved index."""
    settings: Iterable[Mapping[str, int]]
    """What to try, cheapest first."""
    search: Callable[[Any, np.ndarray, int, Mapping[str, int], int], tuple[np.ndarray, np.ndarray]]
    """Rows and scores, [B K, S] each and the larger the better, of (index, queries, S, setting, threads)."""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def run(name: str, peer: Peer) -> None:
    """The whole of a peer's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--num-candidates", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--build-only", action="store_true")
    words = parser.parse_args()
    vectors = np.load(words.folder / "vectors.npy", mmap_mode="r")
    path = words.folder / f"{name}.index"
    facts = words.folder / f"{name}.json"
    if not facts.exists():
        began = time.monotonic()
        index = peer.build(np.array(vectors), len(os.sched_getaffinity(0)))
        seconds = time.monotonic() - began
        peer.save(index, path)
        facts.write_text(json.dumps({"build_s": seconds, "how": peer.how}))
        del index
    if words.build_only:
        return
    index = peer.load(path, vectors)
    requests = np.load(words.folder / "interests.npy")[: words.num_requests]
    thresholds = np.load(words.folder / "thresholds.npy")[: words.num_requests]
    result = {
        "engine": name,
        "version": peer.version,
        **json.loads(facts.read_text()),
        "bytes_per_item": peer.num_bytes(path) / len(vectors),
        "points": [
            point
            for threads in [int(text) for text in words.threads.split(",")]
            for point in _points(peer, index, vectors, requests, thresholds, threads, words)
        ],
    }
    words.out.write_text(json.dumps(result))


def _points(
    peer: Peer,
    index: Any,
    vectors: np.ndarray,
    requests: np.ndarray,
    thresholds: np.ndarray,
    threads: int,
    words: argparse.Namespace,
) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for k_factor in _K_FACTORS:
        for setting in peer.settings:
            step = _measure(peer, index, vectors, requests, thresholds, threads, words, setting, k_factor)
            points += step
            reached = [point["request_us"] for point in points if point["recall"] >= _ENOUGH_RECALL]
            if any(point["recall"] >= _ENOUGH_RECALL for point in step) or (
                reached and step[0]["request_us"] > _TOO_SLOW * min(reached)
            ):
                break
    return points


def _measure(
    peer: Peer,
    index: Any,
    vectors: np.ndarray,
    requests: np.ndarray,
    thresholds: np.ndarray,
    threads: int,
    words: argparse.Namespace,
    setting: Mapping[str, int],
    k_factor: float,
) -> list[dict[str, Any]]:
    clock = time.thread_time if threads == 1 else time.perf_counter
    num_interests, dim = requests.shape[1:]
    factors = [factor for factor in _POOL_FACTORS if factor < num_interests * k_factor]
    factors.append(num_interests * k_factor)
    seconds: dict[float, list[float]] = {factor: [] for factor in factors}
    recalls: dict[float, list[float]] = {factor: [] for factor in factors}
    for start in range(-words.batch_size, len(requests), words.batch_size):
        batch = requests[max(start, 0) :][: words.batch_size]  # the first batch twice: once to warm up
        queries = np.ascontiguousarray(batch.reshape(-1, dim))
        began = clock()
        rows, scores = peer.search(index, queries, ceil(words.num_candidates * k_factor), setting, threads)
        search_s = clock() - began
        shape = (len(batch), num_interests, -1)
        rows = np.ascontiguousarray(rows, np.int64).reshape(shape)
        scores = np.ascontiguousarray(scores, np.float32).reshape(shape)
        for factor in factors:
            began = clock()
            pools = rescore(scores, rows, batch, vectors, ceil(words.num_candidates * factor))
            _, found, _ = best_candidates(pools, words.num_candidates)
            if start >= 0:
                seconds[factor].append((search_s + clock() - began) / len(batch))
                least = thresholds[start : start + len(batch), None]
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
