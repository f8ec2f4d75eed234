"""Estimates of the memory that building an index takes, before any work; and release of freed memory.

The figures follow from FAISS's own layouts.

Legend: N items, D embedding.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

import faiss

from re4.common.errors import ExportError

GIB: Final = 1 << 30
SHARD_BYTES: Final = 512 << 20
"""Lists of more bytes than this are built in shards of at most so many."""
WORKING_BYTES: Final = GIB
"""Held beside the index, whatever its size: libraries, the training sample, a chunk of the vectors."""

_ID_BYTES: Final = 8
_SMALLEST_SHARD: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of one index over one catalogue."""

    index_bytes: int
    """The finished index, in memory and in its file."""
    lists_bytes: int
    """The part of it that can be built in shards and merged in the file; 0 for kinds that cannot."""
    shard_bytes: int
    """Largest shard; 0 where the index is filled in one piece."""

    @property
    def build_bytes(self) -> int:
        """The most memory held at once while it is built and tuned."""
        if self.shard_bytes:
            # A growing list may take twice the size of its content.
            return WORKING_BYTES + self.index_bytes - self.lists_bytes + 2 * self.shard_bytes
        return WORKING_BYTES + self.index_bytes


def estimate_memory(base: Any, num_items: int, memory_limit: int | None = None) -> MemoryEstimate:
    """Estimate the memory of an index.

    Args:
        base: The empty index.
        num_items: N.
        memory_limit: Bytes that building it may hold; None for no limit. Shards become smaller to keep to it.
    """
    if not isinstance(base, faiss.IndexIVF):
        index_bytes = num_items * _bytes_per_item(base)
        return MemoryEstimate(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    lists_bytes = num_items * (base.code_size + _ID_BYTES)
    # Centroids, and the four-bit codes of their reaches; HNSW over them takes a little more.
    index_bytes = lists_bytes + base.nlist * base.d * 9 // 2
    invlists: Any = base.invlists
    lists: Any = faiss.downcast_InvertedLists(invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists):
        # The last block of a list is half empty.
        index_bytes += base.nlist * getattr(lists, "block_size", 0) // 2
        return MemoryEstimate(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    shard_bytes = SHARD_BYTES
    if memory_limit is not None:
        spare = (memory_limit - WORKING_BYTES - (index_bytes - lists_bytes)) // 2
        shard_bytes = max(_SMALLEST_SHARD, min(shard_bytes, spare))
    if lists_bytes <= shard_bytes:
        return MemoryEstimate(index_bytes=index_bytes, lists_bytes=0, shard_bytes=0)
    return MemoryEstimate(index_bytes=index_bytes, lists_bytes=lists_bytes, shard_bytes=shard_bytes)


def check_memory(factory: str, memory: MemoryEstimate, num_items: int, memory_limit: int | None) -> None:
    """Refuse an index that needs more memory than the limit.

    Raises:
        ExportError: naming both sizes.
    """
    if memory_limit is not None and memory.build_bytes > memory_limit:
        raise ExportError(
            f"{factory}: building it over {num_items:,} items takes {memory.build_bytes / GIB:.2f} GiB, "
            f"--memory-limit is {memory_limit / GIB:.2f} GiB. Raise it, or choose an index that is built in "
            "shards, such as --index ivf or ivf-sq8"
        )


def release_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, and an index's lists are much of it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _bytes_per_item(base: Any) -> int:
    if isinstance(base, faiss.IndexHNSW):
        hnsw: Any = base.hnsw
        # Each layer has 1/M of the nodes of the one below, M links each: about one link a node, all layers
        # together. An offset of 8 bytes and a level of 4 come to them.
        links = hnsw.nb_neighbors(0) + 2
        return int(base.storage.sa_code_size() + 4 * links + 12)
    return int(base.sa_code_size())
