"""Names for `--index`: the recipe of each, and the choice of `auto` by the number of items.

Measured with the vectors of `benchmarks/synthetic/` (D = 64, K = 4, 100 candidates, recall 0.95, one thread):
a flat index answers over 20,000 items in a third of a millisecond, and is exact. Above that, IVF with
fast-scan codes is the fastest kind. Only RaBitQ needs less space, and a graph takes longer to build.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from re4.bundle.milvus.address import is_milvus, parse_index
from re4.bundle.milvus.stub import require_pymilvus
from re4.common.errors import UsageError
from re4.exporting.settings import AUTO, TargetDevice

MAX_FLAT_ITEMS: Final = 20_000
MAX_FLAT_ITEMS_ON_CUDA: Final = 1_000_000
"""Estimated from the memory bandwidth of a GPU, not measured on one."""

Recipe: TypeAlias = Callable[[int, int], str]
"""Returns a FAISS factory string for a number of items and a width."""

_BY_SPEED: Final = (
    ("ivf-pq", "lists of short codes are the fastest"),
    ("ivf-rabitq", "lists of one-bit codes, built in shards: four-bit codes do not fit the memory limit"),
)
_FACTORY: Final = re.compile(r"(Flat|HNSW|IVF|CAGRA)[A-Za-z0-9_,()]*")


def num_lists(num_items: int) -> int:
    """Return the number of lists: the power of two below 4 √N, with at least 39 items a list to train on."""
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
"""Indexes that only a GPU builds."""
NAMED: Final = {**RECIPES, **GPU_RECIPES}


def choose_index(
    num_items: int, fits: Callable[[str], bool] = lambda _: True, device: TargetDevice = TargetDevice.CPU
) -> tuple[str, str]:
    """Choose an index by the number of items.

    Args:
        num_items: Size of the catalogue.
        fits: Whether an index of a name can be built within the memory limit.
        device: The device that servers will search on.

    Returns:
        The name, and the reason in one line.
    """
    on_cuda = device is TargetDevice.CUDA
    most = MAX_FLAT_ITEMS_ON_CUDA if on_cuda else MAX_FLAT_ITEMS
    where = " on a GPU" if on_cuda else ""
    if num_items <= most:
        return "flat", f"{num_items:,} items, at most {most:,}: comparing all is fast{where}, and exact"
    size = f"{num_items:,} items, more than {most:,}"
    if on_cuda:
        return "ivf", f"{size}: lists of whole vectors are what a GPU reads fastest"
    for name, why in _BY_SPEED:
        if fits(name):
            return name, f"{size}: {why}"
    return _BY_SPEED[0][0], f"{size}: no kind fits the memory limit, this is the fastest"


def check_index_name(index: str) -> None:
    """Refuse a name that is no index, before any work.

    Raises:
        UsageError: neither `auto`, nor a name here, nor a FAISS factory string, nor an address of Milvus; or
            pymilvus is not installed.
    """
    if is_milvus(index):
        parse_index(index)
        require_pymilvus()
        return
    if index not in {AUTO, *NAMED} and not _FACTORY.fullmatch(index):
        raise UsageError(
            f"--index is {index!r}; choose one of {', '.join((AUTO, *NAMED))}, or a FAISS factory string "
            "such as IVF1024,PQ32x4fs, or milvus://HOST:PORT"
        )
