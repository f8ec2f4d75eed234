"""The engine voyager: a graph over float32 vectors, inner products by its own reduction to distances."""

from typing import Any

import numpy as np
import voyager
from harness import GRAPH_WIDTHS, Engine, run


def _build(vectors: np.ndarray, threads: int) -> Any:
    index = voyager.Index(
        voyager.Space.InnerProduct, num_dimensions=vectors.shape[1], M=16, ef_construction=200
    )
    index.add_items(vectors, num_threads=threads)
    return index


def _search(index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
    rows, distances = index.query(
        queries, num_results, num_threads=threads, query_ef=max(setting["ef"], num_results)
    )
    return rows.astype(np.int64), -distances


run(
    Engine(
        name="voyager",
        how="M=16, ef_construction=200",
        build=_build,
        save=lambda index, path: index.save(str(path)),
        load=lambda path, vectors: voyager.Index.load(str(path)),
        settings=[{"ef": ef} for ef in GRAPH_WIDTHS],
        search=_search,
    )
)
