"""The engine ScaNN: a tree of lists, anisotropic codes, exact re-ordering, by dot product."""

from pathlib import Path
from typing import Any

import numpy as np
import scann
from harness import Engine, run


def _build(vectors: np.ndarray, threads: int) -> Any:
    # As its documentation advises: about √N leaves, trained on a sample, two dimensions a code.
    builder = scann.scann_ops_pybind.builder(vectors, 100, "dot_product")
    builder = builder.set_n_training_threads(threads).tree(
        num_leaves=max(1, int(2 * len(vectors) ** 0.5)),
        num_leaves_to_search=50,
        training_sample_size=min(len(vectors), 250_000),
    )
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()


def _save(index: Any, path: Path) -> None:
    path.mkdir(exist_ok=True)
    index.serialize(str(path))


def _search(index: Any, queries: np.ndarray, num_results: int, setting: Any, threads: int) -> Any:
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


run(
    Engine(
        name="scann",
        how="tree of 2√N leaves, score_ah(2, 0.2), reorder",
        build=_build,
        save=_save,
        load=lambda path, vectors: scann.scann_ops_pybind.load_searcher(str(path)),
        settings=[
            {"leaves": leaves, "reordered": reordered}
            for leaves in (4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 45, 60, 90, 130)
            for reordered in (120, 150, 200, 300, 500)
        ],
        search=_search,
    )
)
