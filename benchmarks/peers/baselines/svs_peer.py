"""The engine scalable-vs: a Vamana graph over float16 vectors. Its compressed codes need an Intel CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import svs
from harness import GRAPH_WIDTHS, Engine, run


def _build(vectors: np.ndarray, threads: int) -> Any:
    parameters = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=32, window_size=128)
    return svs.Vamana.build(parameters, vectors.astype(np.float16), svs.DistanceType.MIP, num_threads=threads)


def _save(index: Any, path: Path) -> None:
    for part in ("config", "graph", "data"):
        (path / part).mkdir(parents=True, exist_ok=True)
    index.save(*(str(path / part) for part in ("config", "graph", "data")))


def _load(path: Path, vectors: np.ndarray) -> Any:
    return svs.Vamana(
        str(path / "config"),
        svs.GraphLoader(str(path / "graph")),
        svs.VectorDataLoader(str(path / "data"), svs.DataType.float16),
        svs.DistanceType.MIP,
        num_threads=1,
    )


def _search(index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
    if index.num_threads != threads:
        index.num_threads = threads
    index.search_window_size = max(setting["window"], num_results)
    rows, scores = index.search(queries, num_results)
    return rows.astype(np.int64), scores


run(
    Engine(
        name="scalable-vs",
        how="Vamana, degree 32, window 128, alpha 0.95, float16",
        build=_build,
        save=_save,
        load=_load,
        settings=[{"window": window} for window in GRAPH_WIDTHS],
        search=_search,
    )
)
