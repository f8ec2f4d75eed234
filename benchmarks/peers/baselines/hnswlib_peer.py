"""The engine hnswlib: a graph over float32 vectors, by inner product."""

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from harness import GRAPH_WIDTHS, Engine, run


def _build(vectors: np.ndarray, threads: int) -> Any:
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=16, ef_construction=200, random_seed=1)
    index.add_items(vectors, num_threads=threads)
    return index


def _load(path: Path, vectors: np.ndarray) -> Any:
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.load_index(str(path))
    return index


def _search(index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
    index.set_ef(max(setting["ef"], num_results))
    rows, distances = index.knn_query(queries, num_results, num_threads=threads)
    return rows, -distances


run(
    Engine(
        name="hnswlib",
        how="M=16, ef_construction=200",
        build=_build,
        save=lambda index, path: index.save_index(str(path)),
        load=_load,
        settings=[{"ef": ef} for ef in GRAPH_WIDTHS],
        search=_search,
    )
)
