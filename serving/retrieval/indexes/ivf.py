"""IVF: vectors, or codes of them, in lists around centroids. `nprobe` is how many lists a search reads."""

from typing import Any, Final

import faiss

from re4.serving.retrieval.indexes.kind import MIN_APPROXIMATE_RECALL, IndexKind, one_parameter

_SIGNATURES: Final = {
    b"IwFl": "IndexIVFFlat",
    b"IwSq": "IndexIVFScalarQuantizer",
    b"IwPQ": "IndexIVFPQ",
    b"IwPf": "IndexIVFPQFastScan",
    b"Iwrq": "IndexIVFRaBitQ",
    b"Iwrr": "IndexIVFRaBitQ",  # of several bits
    b"Iwrn": "IndexIVFRaBitQFastScan",
}
_TYPES: Final = frozenset(_SIGNATURES.values())
_faiss: Any = faiss  # its type hints are incomplete


IVF: Final = IndexKind(
    name="ivf",
    signatures=frozenset(_SIGNATURES),
    faiss_types=_TYPES,
    min_golden_recall=MIN_APPROXIMATE_RECALL,
    search_parameters=one_parameter(
        "nprobe", _TYPES, lambda nprobe: _faiss.SearchParametersIVF(nprobe=nprobe)
    ),
)
