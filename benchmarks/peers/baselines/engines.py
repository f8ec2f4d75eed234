"""Engines to compare index kinds with: K searches, one pool of their results, true scores; recall and time.

    python engines.py ENGINE FOLDER OUT

runs one of `ENGINES` in the environment of the peers and communicates by files. A folder goes in, with
`vectors.npy` [N, D], `interests.npy` [Q, K, D] and `thresholds.npy` [Q], the score of each request's last
exact candidate; a JSON file with points comes out. Built indexes stay in the folder and are used again.
Merging and judging are the product's own (`bundle/scoring/`, which needs NumPy
alone), so that engines differ only by the items that they find and by their speed.

Legend: B requests, Q requests, K interests, S results of a search, D embedding, N items, M candidates.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from re4.bundle.scoring.exact_search import reaches
from re4.bundle.scoring.rescoring import best_candidates, rescore

_GRAPH_WIDTHS = (100, 150, 200, 300, 400, 600, 800, 1600)
_K_FACTORS = (1, 1.5, 2)
_POOL_FACTORS = (1.25, 1.5, 2, 3)
_ENOUGH_RECALL = 0.99
_TOO_SLOW = 4
_BATCH_SIZE = 8


class Engine:
    """An engine over float32 vectors, by inner product; its package is imported when it is made.

    `build` returns an index and `load` a saved one. `search` returns rows and scores, [B K, S] each, larger
    scores first.
    """

    package: str
    module: str
    how: str
    """The build, in words of its documentation."""
    settings: Sequence[Mapping[str, int]] = tuple({"ef": width} for width in _GRAPH_WIDTHS)
    """To be tried, cheapest first."""

    def __init__(self) -> None:
        self.library = import_module(self.module)

    def save(self, index: Any, path: Path) -> None:
        """Write an index."""
        index.save(str(path))


class _Hnswlib(Engine):
    package, module, how = "hnswlib", "hnswlib", "M=16, ef_construction=200"

    def build(self, vectors_ND: np.ndarray, threads: int) -> Any:
        index = self.library.Index(space="ip", dim=vectors_ND.shape[1])
        index.init_index(max_elements=len(vectors_ND), M=16, ef_construction=200, random_seed=1)
        index.add_items(vectors_ND, num_threads=threads)
        return index

    def save(self, index: Any, path: Path) -> None:
        index.save_index(str(path))

    def load(self, path: Path, vectors_ND: np.ndarray) -> Any:
        index = self.library.Index(space="ip", dim=vectors_ND.shape[1])
        index.load_index(str(path))
        return index

    def search(self, index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
        index.set_ef(max(setting["ef"], num_results))
        rows, distances = index.knn_query(queries, num_results, num_threads=threads)
        return rows, -distances


class _Usearch(Engine):
    package, module, how = "usearch", "usearch.index", "f16, connectivity=16, expansion_add=128"
    settings = tuple({"expansion": width} for width in _GRAPH_WIDTHS)

    def _empty(self, dim: int) -> Any:
        return self.library.Index(ndim=dim, metric="ip", dtype="f16", connectivity=16, expansion_add=128)

    def build(self, vectors_ND: np.ndarray, threads: int) -> Any:
        index = self._empty(vectors_ND.shape[1])
        index.add(np.arange(len(vectors_ND), dtype=np.uint64), vectors_ND, threads=threads)
        return index

    def load(self, path: Path, vectors_ND: np.ndarray) -> Any:
        index = self._empty(vectors_ND.shape[1])
        index.load(str(path))
        return index

    def search(self, index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
        index.expansion_search = setting["expansion"]
        found = index.search(queries, num_results, threads=threads)
        return found.keys.astype(np.int64), -found.distances


class _Voyager(Engine):
    package, module, how = "voyager", "voyager", "M=16, ef_construction=200"

    def build(self, vectors_ND: np.ndarray, threads: int) -> Any:
        space, dim = self.library.Space.InnerProduct, vectors_ND.shape[1]
        index = self.library.Index(space, num_dimensions=dim, M=16, ef_construction=200)
        index.add_items(vectors_ND, num_threads=threads)
        return index

    def load(self, path: Path, vectors_ND: np.ndarray) -> Any:
        return self.library.Index.load(str(path))

    def search(self, index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
        width = max(setting["ef"], num_results)
        rows, distances = index.query(queries, num_results, num_threads=threads, query_ef=width)
        return rows.astype(np.int64), -distances


class _Scann(Engine):
    # As its documentation advises: about √N leaves, trained on a sample, two dimensions a code.
    package, module = "scann", "scann.scann_ops.py.scann_ops_pybind"
    how = "tree of 2√N leaves, score_ah(2, 0.2), reorder"
    settings = tuple(
        {"leaves": leaves, "reordered": reordered}
        for leaves in (4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 45, 60, 90, 130)
        for reordered in (120, 150, 200, 300, 500)
    )

    def build(self, vectors_ND: np.ndarray, threads: int) -> Any:
        builder = self.library.builder(vectors_ND, 100, "dot_product")
        builder = builder.set_n_training_threads(threads).tree(
            num_leaves=max(1, int(2 * len(vectors_ND) ** 0.5)),
            num_leaves_to_search=50,
            training_sample_size=min(len(vectors_ND), 250_000),
        )
        return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()

    def save(self, index: Any, path: Path) -> None:
        path.mkdir(exist_ok=True)
        index.serialize(str(path))

    def load(self, path: Path, vectors_ND: np.ndarray) -> Any:
        return self.library.load_searcher(str(path))

    def search(self, index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
        search, words = index.search_batched, {}
        if threads > 1:
            search, words = index.search_batched_parallel, {"batch_size": -(-len(queries) // threads)}
        rows, scores = search(
            queries,
            final_num_neighbors=num_results,
            pre_reorder_num_neighbors=setting["reordered"],
            leaves_to_search=setting["leaves"],
            **words,
        )
        return rows.astype(np.int64), scores


class _Svs(Engine):
    # A Vamana graph; its compressed codes would need an Intel CPU.
    package, module, how = "scalable-vs", "svs", "Vamana, degree 32, window 128, alpha 0.95, float16"
    settings = tuple({"window": width} for width in _GRAPH_WIDTHS)
    _parts = ("config", "graph", "data")

    def build(self, vectors_ND: np.ndarray, threads: int) -> Any:
        parameters = self.library.VamanaBuildParameters(alpha=0.95, graph_max_degree=32, window_size=128)
        vectors_ND = vectors_ND.astype(np.float16)
        return self.library.Vamana.build(
            parameters, vectors_ND, self.library.DistanceType.MIP, num_threads=threads
        )

    def save(self, index: Any, path: Path) -> None:
        for part in self._parts:
            (path / part).mkdir(parents=True, exist_ok=True)
        index.save(*(str(path / part) for part in self._parts))

    def load(self, path: Path, vectors_ND: np.ndarray) -> Any:
        config, graph, data = (str(path / part) for part in self._parts)
        loaders = (
            self.library.GraphLoader(graph),
            self.library.VectorDataLoader(data, self.library.DataType.float16),
        )
        return self.library.Vamana(config, *loaders, self.library.DistanceType.MIP, num_threads=1)

    def search(self, index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
        if index.num_threads != threads:
            index.num_threads = threads
        index.search_window_size = max(setting["window"], num_results)
        rows, scores = index.search(queries, num_results)
        return rows.astype(np.int64), scores


ENGINES = {"hnswlib": _Hnswlib, "usearch": _Usearch, "voyager": _Voyager, "scann": _Scann, "svs": _Svs}


@dataclass(frozen=True, kw_only=True)
class _Workload:
    engine: Any
    index: Any
    vectors_ND: np.ndarray
    requests_QKD: np.ndarray
    thresholds_Q: np.ndarray
    num_candidates: int

    def points(self, threads: int) -> list[dict[str, Any]]:
        """Measure settings, cheapest first, until one has enough recall or is too slow to be of use."""
        points, fastest_us = [], np.inf
        for k_factor in _K_FACTORS:
            for setting in self.engine.settings:
                step = self._measure(setting, k_factor, threads)
                points += step
                enough = [point["request_us"] for point in step if point["recall"] >= _ENOUGH_RECALL]
                fastest_us = min([fastest_us, *enough])
                if enough or step[0]["request_us"] > _TOO_SLOW * fastest_us:
                    break
        return points

    def _measure(self, setting: Mapping[str, int], k_factor: float, threads: int) -> list[dict[str, Any]]:
        clock = time.thread_time if threads == 1 else time.perf_counter
        num_interests, dim = self.requests_QKD.shape[1:]
        most = num_interests * k_factor
        measured = {factor: ([], []) for factor in (*(each for each in _POOL_FACTORS if each < most), most)}
        num_results = ceil(self.num_candidates * k_factor)
        for start in range(-_BATCH_SIZE, len(self.requests_QKD), _BATCH_SIZE):
            # The first batch twice: once to warm up.
            batch = self.requests_QKD[max(start, 0) :][:_BATCH_SIZE]
            queries = np.ascontiguousarray(batch.reshape(-1, dim))
            began = clock()
            rows, scores = self.engine.search(self.index, queries, num_results, setting, threads)
            search_s = clock() - began
            shape = (len(batch), num_interests, -1)
            rows = np.ascontiguousarray(rows, np.int64).reshape(shape)
            scores = np.ascontiguousarray(scores, np.float32).reshape(shape)
            for factor, (seconds, recalls) in measured.items():
                began = clock()
                pools = rescore(scores, rows, batch, self.vectors_ND, ceil(self.num_candidates * factor))
                _, found, _ = best_candidates(pools, self.num_candidates)
                if start >= 0:
                    seconds.append((search_s + clock() - began) / len(batch))
                    recalls.append(reaches(found, self.thresholds_Q[start:][: len(batch), None]).mean())
        return [
            {
                "threads": threads,
                "search_parameters": {**setting, "k_factor": k_factor, "pool_factor": factor},
                "recall": float(np.mean(recalls)),
                "request_us": float(np.median(seconds)) * 1e6,
            }
            for factor, (seconds, recalls) in measured.items()
        ]


def main() -> None:
    """Build or load an engine's index, measure it, and write the points."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--num-candidates", type=int, default=100)
    parser.add_argument("--num-requests", type=int, default=200)
    words = parser.parse_args()
    engine = ENGINES[words.engine]()
    vectors_ND = np.load(words.folder / "vectors.npy", mmap_mode="r")
    path, facts = words.folder / f"{engine.package}.index", words.folder / f"{engine.package}.json"
    if not facts.exists():
        began = time.monotonic()
        index = engine.build(np.array(vectors_ND), len(os.sched_getaffinity(0)))
        seconds = time.monotonic() - began
        engine.save(index, path)
        facts.write_text(json.dumps({"build_s": seconds, "how": engine.how}))
        del index
    workload = _Workload(
        engine=engine,
        index=engine.load(path, vectors_ND),
        vectors_ND=vectors_ND,
        requests_QKD=np.load(words.folder / "interests.npy")[: words.num_requests],
        thresholds_Q=np.load(words.folder / "thresholds.npy")[: words.num_requests],
        num_candidates=words.num_candidates,
    )
    files = path.rglob("*") if path.is_dir() else [path]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    result = {
        "engine": engine.package,
        "version": version(engine.package),
        **json.loads(facts.read_text()),
        "bytes_per_item": num_bytes / len(vectors_ND),
        "points": [point for text in words.threads.split(",") for point in workload.points(int(text))],
    }
    words.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
