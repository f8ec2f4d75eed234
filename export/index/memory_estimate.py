"""How much memory an index takes while it is built, said before any work; and giving it back afterwards.

Figures are of FAISS's own layouts. Knows nothing about time or recall.

Legend: N items, D embedding.
"""

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import Any, Final

import faiss

from re4.common.errors import ExportError, UsageError

GIB: Final = 1 << 30
SHARD_BYTES: Final = 512 << 20
"""Lists of more bytes than this are built in shards of at most so many."""
WORKING_BYTES: Final = GIB
"""Held beside the index, whatever its size: libraries, the sample to train on, a piece of the vectors."""

_ID_BYTES: Final = 8
_SMALLEST_SHARD: Final = 16 << 20
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one index over one catalogue takes."""

    index_bytes: int
    """The finished index, in memory and in its file."""
    lists_bytes: int
    """The part of it that can be built in shards and merged in the file; 0 for kinds that cannot."""
    shard_bytes: int
    """Largest shard; 0 where the index is filled in one piece."""

    @property
    def build_bytes(self) -> int:
        """Most that is held at once while it is built and tuned."""
        if self.shard_bytes:
            # A growing list may take twice what is in it.
            return WORKING_BYTES + self.index_bytes - self.lists_bytes + 2 * self.shard_bytes
        return WORKING_BYTES + self.index_bytes


def need_of(base: Any, num_items: int, memory_limit: int | None = None) -> Need:
    """What an index takes.

    Args:
        base: The empty index.
        num_items: N.
        memory_limit: Bytes that building it may hold; None for no limit. Shards become smaller to keep to it.
    """
    if not isinstance(base, faiss.IndexIVF):
        index_bytes = num_items * _bytes_per_item(base)
        return Need(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    lists_bytes = num_items * (base.code_size + _ID_BYTES)
    # Centroids, and the four-bit codes of their reaches; HNSW over them takes a little more.
    index_bytes = lists_bytes + base.nlist * base.d * 9 // 2
    invlists: Any = base.invlists
    lists: Any = faiss.downcast_InvertedLists(invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists):
        # The last block of a list is half empty.
        index_bytes += base.nlist * getattr(lists, "block_size", 0) // 2
        return Need(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    shard_bytes = SHARD_BYTES
    if memory_limit is not None:
        spare = (memory_limit - WORKING_BYTES - (index_bytes - lists_bytes)) // 2
        shard_bytes = max(_SMALLEST_SHARD, min(shard_bytes, spare))
    if lists_bytes <= shard_bytes:
        return Need(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    return Need(index_bytes=index_bytes, lists_bytes=lists_bytes, shard_bytes=shard_bytes)


def check_memory(factory: str, need: Need, num_items: int, memory_limit: int | None) -> None:
    """Refuse what would not fit.

    Raises:
        ExportError: building it takes more than the limit; says how much.
    """
    if memory_limit is not None and need.build_bytes > memory_limit:
        raise ExportError(
            f"{factory}: building it over {num_items:,} items takes {need.build_bytes / GIB:.2f} GiB, "
            f"--memory-limit is {memory_limit / GIB:.2f} GiB. Raise it, or choose an index that is built in "
            "shards, such as --index ivf or ivf-sq8"
        )


def give_back_freed() -> None:
    """Return to the system what was freed: glibc keeps it for later, and an index's lists are much of it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 8GiB, 512MB or 2g: units are powers of 1,024.

    Raises:
        UsageError: not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--memory-limit {text}: a size above 0 is needed, such as 8GiB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _bytes_per_item(base: Any) -> int:
    if isinstance(base, faiss.IndexHNSW):
        hnsw: Any = base.hnsw
        # Each layer has 1/M of the nodes of the one below, M links each: about one link a node, all layers
        # together. An offset of 8 bytes and a level of 4 come to them.
        links = hnsw.nb_neighbors(0) + 2
        return int(base.storage.sa_code_size() + 4 * links + 12)
    return int(base.sa_code_size())
