"""Index kinds that items can be exported to.

A new family is a file beside `flat.py` and one line in `FAMILIES`; a name for `--index` is one line in
`RECIPES`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from re4.exporting.index.families.flat import FLAT
from re4.exporting.index.families.hnsw import HNSW
from re4.exporting.index.families.ivf import IVF
from re4.exporting.index.families.kind import IndexFamily, Settings

FAMILIES: Final = (FLAT, HNSW, IVF)

Recipe: TypeAlias = Callable[[int, int], str]
"""Makes a FAISS factory string for a number of items and a width."""


def num_lists(num_items: int) -> int:
    """Lists of an IVF index: the power of two nearest below 4 √N, each with at least 39 items to train on."""
    wanted = min(4 * num_items**0.5, num_items / 39)
    return 1 << (max(1, int(wanted)).bit_length() - 1)


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "flat": lambda num_items, embedding_dim: "Flat",
        "hnsw": lambda num_items, embedding_dim: "HNSW32,Flat",
        "hnsw-sq8": lambda num_items, embedding_dim: "HNSW32_SQ8",
        "ivf": lambda num_items, embedding_dim: f"IVF{num_lists(num_items)},Flat",
        "ivf-sq8": lambda num_items, embedding_dim: f"IVF{num_lists(num_items)},SQ8",
        # Four bits a dimension, of the difference from the centroid.
        "ivf-pq": lambda num_items, embedding_dim: f"IVF{num_lists(num_items)},PQ{embedding_dim}x4fsr",
        "ivf-rabitq": lambda num_items, embedding_dim: f"IVF{num_lists(num_items)},RaBitQ",
    }
)

GPU_RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {"cagra": lambda num_items, embedding_dim: "CAGRA64"},
)
"""What only a GPU builds."""

__all__ = [
    "FAMILIES",
    "FLAT",
    "GPU_RECIPES",
    "HNSW",
    "RECIPES",
    "IndexFamily",
    "Recipe",
    "Settings",
    "num_lists",
]
