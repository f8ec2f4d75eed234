"""IVF: vectors in lists around centroids. `nprobe` is how many lists a search reads."""

from collections.abc import Mapping
from typing import Any, Final

import faiss

from serving.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, SearchPlan, only

_TYPES: Final = frozenset({"IndexIVFFlat"})
_faiss: Any = faiss  # its type hints are incomplete


def ivf_parameters(parameters: Mapping[str, int | float]) -> Any:
    """The per-call FAISS parameters of an IVF index."""
    return _faiss.SearchParametersIVF(nprobe=parameters["nprobe"])


def _plan(parameters: Mapping[str, int | float]) -> SearchPlan:
    only(parameters, "nprobe")
    return SearchPlan(parameters=ivf_parameters(parameters), base_types=_TYPES)


IVF: Final = IndexKind(
    name="ivf",
    signatures=frozenset({b"IwFl"}),
    faiss_types=_TYPES,
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=_plan,
)
