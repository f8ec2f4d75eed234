"""HNSW: a graph of neighbours, over the vectors or over codes of them; or the graph that CAGRA made on a GPU.

`ef_search` is how many nodes a search keeps in view.
"""

from collections.abc import Mapping
from typing import Any, Final

import faiss

from serving.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, SearchPlan, only

_TYPES: Final = frozenset({"IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWCagra"})
_faiss: Any = faiss  # its type hints are incomplete


def _plan(parameters: Mapping[str, int | float]) -> SearchPlan:
    only(parameters, "ef_search", "k_factor", "pool_factor")
    return SearchPlan(
        parameters=_faiss.SearchParametersHNSW(efSearch=parameters["ef_search"]),
        types=_TYPES,
        k_factor=parameters["k_factor"],
        pool_factor=parameters["pool_factor"],
    )


HNSW: Final = IndexKind(
    name="hnsw",
    signatures=frozenset({b"IHNf", b"IHNs", b"IHc2"}),
    faiss_types=_TYPES,
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=_plan,
)
