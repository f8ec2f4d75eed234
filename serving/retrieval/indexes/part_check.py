"""The check of the parts inside a loaded index against an allow-list and the search plan.

The loader checks the outermost class only. An IVF index holds centroids, which may be an index
themselves; an HNSW index holds its storage. FAISS also accepts search parameters of another kind
without an error and ignores them, so the class must be the one that the plan is for.
"""

from typing import Any, Final

import faiss

from re4.common.errors import BundleMismatchError
from re4.serving.retrieval.indexes.kinds import SearchPlan

_FLAT: Final = frozenset({"IndexFlat", "IndexFlatIP"})
_CHOOSERS: Final = _FLAT | {"IndexHNSWFlat", "IndexPQFastScan"}
_CENTROIDS: Final = _FLAT | {"IndexHNSWFlat", "IndexRefineFlat"}
_HNSW_STORAGE: Final = _FLAT | {"IndexScalarQuantizer"}


def check_parts(index: Any, plan: SearchPlan | None) -> None:
    """Reject an index with a part that is not allowed, or of a class that the plan is not for.

    Args:
        index: A loaded index, its own class checked.
        plan: How the index is searched; None for a flat index, which has no parts. Nor has one on another
            machine.

    Raises:
        BundleMismatchError: names the part, its class and the allowed classes.
    """
    if plan is None or not plan.types:
        return
    _check("class", index, plan.types, index.ntotal)
    if isinstance(index, faiss.IndexIVF):
        centroids = _check("centroids", index.quantizer, _CENTROIDS, index.nlist)
        if isinstance(centroids, faiss.IndexRefine):
            _check("centroids' vectors", centroids.refine_index, _FLAT, index.nlist)
            centroids = _check("centroids' chooser", centroids.base_index, _CHOOSERS, index.nlist)
        if isinstance(centroids, faiss.IndexHNSW):
            _check("centroids' storage", centroids.storage, _FLAT, index.nlist)
    else:
        _check("storage", index.storage, _HNSW_STORAGE, index.ntotal)


def _check(part: str, index: Any, allowed: frozenset[str], num_vectors: int) -> Any:
    """Check a part, and return it as its own class."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    if name not in allowed:
        raise BundleMismatchError(
            f"the index's {part}: {name}; with these search parameters it may be {', '.join(sorted(allowed))}"
        )
    if (index.ntotal, index.metric_type) != (num_vectors, faiss.METRIC_INNER_PRODUCT):
        raise BundleMismatchError(
            f"the index's {part}: {index.ntotal} vectors, metric {index.metric_type}; {num_vectors} vectors, "
            f"metric {faiss.METRIC_INNER_PRODUCT} (inner product) belong there"
        )
    return index
