"""HNSW: a graph of neighbours. `ef_search`, the nodes that a search keeps in view, buys recall with time."""

from collections.abc import Sequence
from typing import Any, Final

import faiss

from re4.exporting.index.families.kind import IndexFamily, Settings

_faiss: Any = faiss  # its type hints are incomplete
_MULTIPLES: Final = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def _settings(index: Any, num_results: int) -> Sequence[Settings]:
    # FAISS keeps at least as many nodes in view as it must return: less changes nothing.
    wanted = [int(num_results * multiple) for multiple in _MULTIPLES]
    return [{"ef_search": ef_search} for ef_search in wanted if ef_search <= max(index.ntotal, wanted[0])]


HNSW: Final = IndexFamily(
    name="hnsw",
    faiss_types=frozenset({"IndexHNSWFlat", "IndexHNSWSQ", "IndexHNSWCagra"}),
    is_exact=False,
    settings=_settings,
    parameters=lambda settings: _faiss.SearchParametersHNSW(efSearch=settings["ef_search"]),
    advice="a graph with more links, such as --index HNSW64,Flat, or --index ivf",
)
