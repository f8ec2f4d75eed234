"""Refined kinds: codes find `k_factor` times as many items as are wanted, the exact vectors rank them.

So scores are true inner products, whatever the codes lose. The exact vectors lie in the index file and are
mapped: a search touches the pages of the items that it ranks.
"""

from collections.abc import Mapping
from typing import Any, Final

import faiss

from serving.indexes.hnsw import hnsw_parameters
from serving.indexes.ivf import ivf_parameters
from serving.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, SearchPlan, only

_HNSW_TYPES: Final = frozenset({"IndexHNSWFlat", "IndexHNSWSQ"})
_IVF_TYPES: Final = frozenset(
    {
        "IndexIVFFlat",
        "IndexIVFScalarQuantizer",
        "IndexIVFPQ",
        "IndexIVFPQFastScan",
        "IndexIVFRaBitQ",
        "IndexIVFRaBitQFastScan",
    }
)
_faiss: Any = faiss  # its type hints are incomplete


def _hnsw_plan(parameters: Mapping[str, int | float]) -> SearchPlan:
    only(parameters, "ef_search", "k_factor")
    base = hnsw_parameters(parameters)
    return SearchPlan(parameters=_refining(parameters, base), base_types=_HNSW_TYPES)


def _ivf_plan(parameters: Mapping[str, int | float]) -> SearchPlan:
    only(parameters, "nprobe", "k_factor")
    base = ivf_parameters(parameters)
    return SearchPlan(parameters=_refining(parameters, base), base_types=_IVF_TYPES)


def _refining(parameters: Mapping[str, int | float], base: Any) -> Any:
    return _faiss.IndexRefineSearchParameters(k_factor=float(parameters["k_factor"]), base_index_params=base)


HNSW_REFINED: Final = IndexKind(
    name="hnsw-refined",
    signatures=frozenset({b"IxRF"}),
    faiss_types=frozenset({"IndexRefineFlat"}),
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=_hnsw_plan,
)

IVF_REFINED: Final = IndexKind(
    name="ivf-refined",
    signatures=frozenset({b"IxRF"}),
    faiss_types=frozenset({"IndexRefineFlat"}),
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=_ivf_plan,
)
