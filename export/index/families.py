"""Families of FAISS indexes: the classes that servers load, how each is searched, and what tuning may vary.

A new family is one `IndexFamily` here and one entry in `FAMILIES`. A server keeps its own list of the classes
that it loads (`serving/retrieval/indexes/`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import faiss

from re4.bundle.milvus.collection_index import CollectionParameters

_faiss: Any = faiss  # its type hints are incomplete
_EF_MULTIPLES: Final = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)

SearchParameters: TypeAlias = Mapping[str, int | float]
"""Search parameters as the manifest has them: `nprobe`, `shared_nprobe`, `reach_drop`, `ef_search`,
`k_factor`, `pool_factor`."""


@dataclass(frozen=True, kw_only=True)
class IndexFamily:
    """FAISS classes that are searched in one way, with one parameter to tune."""

    name: str
    """The manifest's `index.kind`."""
    faiss_types: frozenset[str]
    """FAISS classes of the family that servers load."""
    is_exact: bool
    """True where a search finds the best items, with true scores. Results of other families are scored again
    by the item vectors (`re4.bundle.scoring.rescoring`)."""
    settings: Callable[[Any, int], Sequence[SearchParameters]]
    """Settings to try for an index and a number of results, cheapest first."""
    parameters: Callable[[SearchParameters], Any]
    """The per-call FAISS search parameters of a setting; None where there are none."""
    shares_lists: bool = False
    """Whether the interests of a request may share one budget of lists."""
    advice: str
    """A remedy where an index of this family does not reach the recall target; part of an error message."""


def _flat_settings(index: Any, num_results: int) -> Sequence[SearchParameters]:
    return [{}]


def _hnsw_settings(index: Any, num_results: int) -> Sequence[SearchParameters]:
    # FAISS keeps at least as many nodes in view as it must return: less changes nothing.
    wanted = [int(num_results * multiple) for multiple in _EF_MULTIPLES]
    return [{"ef_search": ef_search} for ef_search in wanted if ef_search <= max(index.ntotal, wanted[0])]


def _ivf_settings(index: Any, num_results: int) -> Sequence[SearchParameters]:
    return [{"nprobe": nprobe} for nprobe in quarter_powers(index.nlist)]


def quarter_powers(most: int) -> list[int]:
    """Return numbers from 1 to `most`, four between one power of two and the next."""
    steps = {quarters << power >> 2 for power in range(most.bit_length()) for quarters in (4, 5, 6, 7)}
    return sorted({min(step, most) for step in steps | {most}})


FLAT: Final = IndexFamily(
    name="flat",
    faiss_types=frozenset({"IndexFlat", "IndexFlatIP"}),
    is_exact=True,
    settings=_flat_settings,
    parameters=lambda settings: None,
    advice="nothing: it is exact",
)
"""Every item is compared: exact, and nothing to tune."""

HNSW: Final = IndexFamily(
    name="hnsw",
    faiss_types=frozenset({"IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWCagra"}),
    is_exact=False,
    settings=_hnsw_settings,
    parameters=lambda settings: _faiss.SearchParametersHNSW(efSearch=settings["ef_search"]),
    advice="a graph with more links, such as --index HNSW64,Flat, or --index ivf",
)
"""A graph of neighbours. A larger `ef_search`, the number of nodes kept in view, raises recall and time."""

IVF: Final = IndexFamily(
    name="ivf",
    faiss_types=frozenset(
        {
            "IndexIVFFlat",
            "IndexIVFScalarQuantizer",
            "IndexIVFPQ",
            "IndexIVFPQFastScan",
            "IndexIVFRaBitQ",
            "IndexIVFRaBitQFastScan",
        }
    ),
    is_exact=False,
    settings=_ivf_settings,
    parameters=lambda settings: _faiss.SearchParametersIVF(nprobe=settings["nprobe"]),
    shares_lists=True,
    advice="codes that lose less, such as --index ivf-sq8, or none: --index ivf",
)
"""Vectors in lists around centroids. A larger number of lists read raises recall and time: `nprobe` for each
interest; `shared_nprobe` and `reach_drop` for all interests of a request
(`re4.common.shared_list_search`)."""


def _milvus_parameters(settings: SearchParameters) -> CollectionParameters:
    return CollectionParameters(
        values={name: settings[name] for name in ("nprobe", "ef_search") if name in settings}
    )


MILVUS_FLAT: Final = replace(FLAT, name="milvus-flat", faiss_types=frozenset(), parameters=_milvus_parameters)
MILVUS_HNSW: Final = replace(
    HNSW,
    name="milvus-hnsw",
    faiss_types=frozenset(),
    parameters=_milvus_parameters,
    advice="?index=ivf, or ?index=flat after the address of Milvus",
)
MILVUS_IVF: Final = replace(
    IVF,
    name="milvus-ivf",
    faiss_types=frozenset(),
    parameters=_milvus_parameters,
    shares_lists=False,
    advice="?index=ivf after the address of Milvus, whose codes are the vectors",
)
MILVUS_FAMILIES: Final = {
    "FLAT": MILVUS_FLAT,
    "HNSW": MILVUS_HNSW,
    "IVF_FLAT": MILVUS_IVF,
    "IVF_SQ8": MILVUS_IVF,
}
"""Of collections, by Milvus's names of the index types. An index in Milvus has no file."""

FAMILIES: Final = (FLAT, HNSW, IVF)
