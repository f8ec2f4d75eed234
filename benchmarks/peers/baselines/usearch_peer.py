"""The engine usearch: a graph over vectors of half precision, by inner product."""

from pathlib import Path
from typing import Any

import numpy as np
from harness import GRAPH_WIDTHS, Engine, run
from usearch.index import Index


def _empty(dim: int) -> Any:
    return Index(ndim=dim, metric="ip", dtype="f16", connectivity=16, expansion_add=128)


def _build(vectors: np.ndarray, threads: int) -> Any:
    index = _empty(vectors.shape[1])
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=threads)
    return index


def _load(path: Path, vectors: np.ndarray) -> Any:
    index = _empty(vectors.shape[1])
    index.load(str(path))
    return index


def _search(index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
    index.expansion_search = setting["expansion"]
    found = index.search(queries, num_results, threads=threads)
    return found.keys.astype(np.int64), -found.distances


run(
    Engine(
        name="usearch",
        how="f16, connectivity=16, expansion_add=128",
        build=_build,
        save=lambda index, path: index.save(str(path)),
        load=_load,
        settings=[{"expansion": ef} for ef in GRAPH_WIDTHS],
        search=_search,
    )
)
