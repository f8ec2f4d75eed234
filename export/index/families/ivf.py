"""IVF: vectors in lists around centroids. `nprobe`, the lists that a search reads, buys recall with time."""

from collections.abc import Sequence
from typing import Any, Final

import faiss

from re4.exporting.index.families.kind import IndexFamily, Settings

_faiss: Any = faiss  # its type hints are incomplete


def _settings(index: Any, num_results: int) -> Sequence[Settings]:
    num_lists = index.nlist
    steps = {quarters << power >> 2 for power in range(num_lists.bit_length()) for quarters in (4, 5, 6, 7)}
    return [{"nprobe": nprobe} for nprobe in sorted({min(step, num_lists) for step in steps | {num_lists}})]


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
    settings=_settings,
    parameters=lambda settings: _faiss.SearchParametersIVF(nprobe=settings["nprobe"]),
    advice="codes that lose less, such as --index ivf-sq8, or none: --index ivf",
)
