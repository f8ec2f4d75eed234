"""HNSW: a graph of neighbours over the vectors. `ef_search` is how many nodes a search keeps in view."""

from collections.abc import Mapping
from typing import Any, Final

import faiss

from serving.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, SearchPlan, only

_TYPES: Final = frozenset({"IndexHNSWFlat"})
_faiss: Any = faiss  # its type hints are incomplete


def hnsw_parameters(parameters: Mapping[str, int | float]) -> Any:
    """The per-call FAISS parameters of an HNSW index."""
    return _faiss.SearchParametersHNSW(efSearch=parameters["ef_search"])


def _plan(parameters: Mapping[str, int | float]) -> SearchPlan:
    only(parameters, "ef_search")
    return SearchPlan(parameters=hnsw_parameters(parameters), base_types=_TYPES)


HNSW: Final = IndexKind(
    name="hnsw",
    signatures=frozenset({b"IHNf"}),
    faiss_types=_TYPES,
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=_plan,
)
