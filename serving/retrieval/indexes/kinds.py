"""Index kinds: the allow-list of indexes that this server loads, and how each kind is searched.

A new kind is an entry of `KINDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import faiss

from re4.bundle.milvus.collection_index import CollectionParameters
from re4.common.shared_list_search import REACH_DROP, REACH_DROP_EXPONENT, SharedBudget

_MIN_APPROXIMATE_RECALL: Final = 0.5
"""The recall that golden queries require of an approximate index. The manifest states the recall of
a version; an index below this floor holds other items."""

_MAX_VALUE: Final = (1 << 31) - 1
_MAX_FACTOR_EFFORT: Final = 4
_MAX_FACTOR: Final = 1 << 16
"""A pool of all results of any request."""
_SHARED: Final = ("shared_nprobe", REACH_DROP)
_faiss: Any = faiss  # its type hints are incomplete


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How an approximate index is searched."""

    parameters: Any
    """Per-call FAISS search parameters. Never set them on the index itself: that is shared
    state."""
    types: frozenset[str]
    """Names of the FAISS classes that the parameters are for."""
    k_factor: float
    """Results of each interest for each wanted candidate, at least 1."""
    pool_factor: float
    """Results of all interests together that are rescored with the item vectors, for each wanted
    candidate."""
    budget: SharedBudget | None = None
    """Lists that all interests of a request read together, where only the best candidates are needed;
    None where each interest has a budget of its own."""


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """One kind of index."""

    name: str
    """As in the manifest's `index.kind`."""
    signatures: frozenset[bytes]
    """The four bytes with which a file of this kind may begin."""
    faiss_types: frozenset[str]
    """Names of the FAISS classes that such a file may hold."""
    min_golden_recall: float
    """The share of the golden queries' exact candidates that an index of this kind must find, 0 to
    1."""
    search_parameters: Callable[[Mapping[str, int | float]], SearchPlan | None]
    """Makes the plan from the manifest's parameters; None where there is nothing to set. Raises
    ValueError where the parameters are not this kind's."""


def scaled(parameters: Mapping[str, int | float], effort: float) -> dict[str, int | float]:
    """Return search parameters multiplied by an effort: every parameter raises recall.

    Numbers and factors stay at least 1, and an integer stays one. Factors make up for the loss of
    codes, for which a small increase is enough; so they are multiplied by at most 4. The number of
    lists within the `reach_drop` is about in proportion to its fifth power.
    """

    def scaled_value(name: str, value: int | float) -> int | float:
        if name == REACH_DROP:
            return float(value * effort**REACH_DROP_EXPONENT)
        if name.endswith("_factor"):
            return max(1, value * min(effort, _MAX_FACTOR_EFFORT))
        return min(max(1, round(value * effort)), _MAX_VALUE)

    return {name: scaled_value(name, value) for name, value in parameters.items()}


def _one_parameter(
    name: str, types: frozenset[str], faiss_parameters: Callable[[int | float], Any]
) -> Callable[[Mapping[str, int | float]], SearchPlan]:
    """Return the `search_parameters` of an approximate kind that FAISS searches with one parameter.

    Args:
        name: The parameter's name in the manifest.
        types: Names of the FAISS classes that the parameter is for.
        faiss_parameters: Makes FAISS's per-call parameters from its value.
    """

    def plan(parameters: Mapping[str, int | float]) -> SearchPlan:
        shared = _SHARED if name == "nprobe" and _SHARED[0] in parameters else ()
        _check_values(parameters, name, *shared, "k_factor", "pool_factor")
        return SearchPlan(
            parameters=faiss_parameters(parameters[name]),
            types=types,
            k_factor=parameters["k_factor"],
            pool_factor=parameters["pool_factor"],
            budget=SharedBudget(int(parameters[shared[0]]), parameters[shared[1]]) if shared else None,
        )

    return plan


def _no_parameters(parameters: Mapping[str, int | float]) -> None:
    if parameters:
        raise ValueError(f"a flat index takes no search parameters, found {', '.join(parameters)}")


def _check_values(parameters: Mapping[str, int | float], *names: str) -> None:
    """Require exactly these parameters: factors, integers from 1, and a drop above 0; none of them large.

    Raises:
        ValueError: other parameters, missing ones, or a value out of range.
    """
    if set(parameters) != set(names):
        raise ValueError(f"{', '.join(names)} are needed, found {', '.join(sorted(parameters)) or 'none'}")
    for name, value in parameters.items():
        if name == REACH_DROP:
            if not 0 < value <= _MAX_VALUE:
                raise ValueError(f"{name} is {value}, a number above 0 and at most {_MAX_VALUE} is needed")
        elif not 1 <= value <= _MAX_VALUE or (not name.endswith("_factor") and not isinstance(value, int)):
            raise ValueError(f"{name} is {value}, a number from 1 to {_MAX_VALUE} is needed")


# The flat index compares every item, so it is exact.
_FLAT: Final = IndexKind(
    name="flat",
    signatures=frozenset({b"IxFI"}),
    faiss_types=frozenset({"IndexFlatIP"}),
    min_golden_recall=1.0,
    search_parameters=_no_parameters,
)

# HNSW: a graph of neighbours over the vectors or over codes of them, or the graph that CAGRA built
# on a GPU. `ef_search` is the number of nodes that a search keeps in its queue.
_HNSW_TYPES: Final = frozenset({"IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWCagra"})
_HNSW: Final = IndexKind(
    name="hnsw",
    signatures=frozenset({b"IHNf", b"IHNs", b"IHc2"}),
    faiss_types=_HNSW_TYPES,
    min_golden_recall=_MIN_APPROXIMATE_RECALL,
    search_parameters=_one_parameter(
        "ef_search", _HNSW_TYPES, lambda ef_search: _faiss.SearchParametersHNSW(efSearch=ef_search)
    ),
)

# IVF: vectors, or codes of them, in lists around centroids. `nprobe` is the number of lists that a
# search reads. Newer versions also have `shared_nprobe` and `reach_drop`, a budget of lists for all
# interests of a request.
_IVF_SIGNATURES: Final = {
    b"IwFl": "IndexIVFFlat",
    b"IwSq": "IndexIVFScalarQuantizer",
    b"IwPQ": "IndexIVFPQ",
    b"IwPf": "IndexIVFPQFastScan",
    b"Iwrq": "IndexIVFRaBitQ",
    b"Iwrr": "IndexIVFRaBitQ",  # of several bits
    b"Iwrn": "IndexIVFRaBitQFastScan",
}
_IVF_TYPES: Final = frozenset(_IVF_SIGNATURES.values())
_IVF: Final = IndexKind(
    name="ivf",
    signatures=frozenset(_IVF_SIGNATURES),
    faiss_types=_IVF_TYPES,
    min_golden_recall=_MIN_APPROXIMATE_RECALL,
    search_parameters=_one_parameter(
        "nprobe", _IVF_TYPES, lambda nprobe: _faiss.SearchParametersIVF(nprobe=nprobe)
    ),
)


def _collection_parameters(name: str) -> Callable[[int | float], CollectionParameters]:
    return lambda value: CollectionParameters(values={name: value})


def _whole_pool(parameters: Mapping[str, int | float]) -> SearchPlan:
    """Return the plan of an exact index whose scores are made equal to those of a flat index here."""
    _no_parameters(parameters)
    return SearchPlan(
        parameters=CollectionParameters(), types=frozenset(), k_factor=1, pool_factor=_MAX_FACTOR
    )


# Collections in Milvus have no file, so no signature.
_MILVUS_FLAT: Final = replace(
    _FLAT,
    name="milvus-flat",
    signatures=frozenset(),
    faiss_types=frozenset(),
    search_parameters=_whole_pool,
)
_MILVUS_HNSW: Final = replace(
    _HNSW,
    name="milvus-hnsw",
    signatures=frozenset(),
    faiss_types=frozenset(),
    search_parameters=_one_parameter("ef_search", frozenset(), _collection_parameters("ef_search")),
)
_MILVUS_IVF: Final = replace(
    _IVF,
    name="milvus-ivf",
    signatures=frozenset(),
    faiss_types=frozenset(),
    search_parameters=_one_parameter("nprobe", frozenset(), _collection_parameters("nprobe")),
)

KINDS: Final[Mapping[str, IndexKind]] = MappingProxyType(
    {kind.name: kind for kind in (_FLAT, _HNSW, _IVF, _MILVUS_FLAT, _MILVUS_HNSW, _MILVUS_IVF)}
)
