"""HNSW: a graph of neighbours, over the vectors or over codes of them; or the graph that CAGRA made on a GPU.

`ef_search` is how many nodes a search keeps in view.
"""

from typing import Any, Final

import faiss

from re4.serving.retrieval.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, one_parameter

_TYPES: Final = frozenset({"IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWCagra"})
_faiss: Any = faiss  # its type hints are incomplete


HNSW: Final = IndexKind(
    name="hnsw",
    signatures=frozenset({b"IHNf", b"IHNs", b"IHc2"}),
    faiss_types=_TYPES,
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=one_parameter(
        "ef_search", _TYPES, lambda ef_search: _faiss.SearchParametersHNSW(efSearch=ef_search)
    ),
)
