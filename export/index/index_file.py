"""Index files: written, memory-mapped, and merged from shards of an IVF index, with none of them in memory.

FAISS writes the lists of such an index last in its file: their sizes, then the codes and ids of one list
after another. So the merged file is the head of the trained index, the summed sizes, and for each list its
parts in all shards. FAISS's own merging needs the sum of the shards in memory, or leaves a second file that
the first one names. The code checks its assumptions about the format; tests compare with FAISS's own files.

Legend: C lists.
"""

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError

_ARRAYS: Final = b"ilar"
_FULL: Final = b"full"
_SPARSE: Final = b"sprs"
_ID_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """Positions of the lists in a shard's file."""

    path: Path
    sizes_C: NDArray[np.int64]
    """Items of each list."""
    offsets_C: NDArray[np.int64]
    """The position at which each list's codes begin in the file; its ids follow."""


def write_index(index: Any, path: Path) -> None:
    """Write an index as FAISS does.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # also for a full disk
        raise ExportError(f"{path}: FAISS could not write the index: {error}") from error


def read_mapped(path: Path) -> Any:
    """Read an index file; the parts that FAISS can map stay in the file."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def merge_shards(trained: Any, shards: Sequence[Path], path: Path) -> None:
    """Write the index that holds the items of all shards, in the order of the shards.

    Args:
        trained: The trained IVF index that every shard was filled from, itself empty.
        shards: Index files, as FAISS wrote them; their ids are those of the whole.
        path: The file to write.

    Raises:
        ExportError: FAISS's format is not the expected one, or a file cannot be read or written.
    """
    try:
        found = [_locate_lists(shard, trained.code_size) for shard in shards]
        sizes_C = np.stack([shard.sizes_C for shard in found]).sum(axis=0)
        trained.ntotal = int(sizes_C.sum())
        try:
            write_index(trained, path)
        finally:
            trained.ntotal = 0
        _cut_empty_lists(path, trained)
        with path.open("ab") as file:
            file.write(_sizes_as_written(sizes_C, trained.code_size))
            _write_lists(file, found, trained.code_size)
    except (OSError, RuntimeError) as error:
        raise ExportError(f"{path}: the shards of the index could not be merged: {error}") from error


def _locate_lists(path: Path, code_size: int) -> _Shard:
    index = read_mapped(path)
    lists = faiss.downcast_InvertedLists(index.invlists)
    sizes_C = np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)
    lengths_C = sizes_C * (code_size + _ID_BYTES)
    begin = path.stat().st_size - int(lengths_C.sum())
    shard = _Shard(path=path, sizes_C=sizes_C, offsets_C=begin + np.cumsum(lengths_C) - lengths_C)
    written = _sizes_as_written(sizes_C, code_size)
    with path.open("rb") as file:
        file.seek(begin - len(written))
        if not isinstance(lists, faiss.ArrayInvertedLists) or file.read(len(written)) != written:
            raise _unexpected(path)
    return shard


def _cut_empty_lists(path: Path, trained: Any) -> None:
    """Cut the lists of an empty index off the end of its file."""
    nothing = _sizes_as_written(np.zeros(trained.nlist, np.int64), trained.code_size)
    with path.open("r+b") as file:
        file.seek(-len(nothing), os.SEEK_END)
        begin = file.tell()
        if file.read() != nothing:
            raise _unexpected(path)
        file.truncate(begin)


def _unexpected(path: Path) -> ExportError:
    return ExportError(
        f"{path}: FAISS {faiss.__version__} does not write lists as this code expects, so that shards "
        "cannot be merged. Choose --index ivf-pq, which is not built in shards"
    )


def _sizes_as_written(sizes_C: NDArray[np.int64], code_size: int) -> bytes:
    """Return the head of the lists: number, width of a code, sizes; with few filled lists, only theirs."""
    head = _ARRAYS + struct.pack("<QQ", len(sizes_C), code_size)
    filled = np.flatnonzero(sizes_C)
    if len(filled) > len(sizes_C) // 2:
        return head + _FULL + struct.pack("<Q", len(sizes_C)) + sizes_C.astype("<u8").tobytes()
    pairs = np.stack([filled, sizes_C[filled]], axis=1).astype("<u8")
    return head + _SPARSE + struct.pack("<Q", pairs.size) + pairs.tobytes()


def _write_lists(file: BinaryIO, shards: Sequence[_Shard], code_size: int) -> None:
    with ExitStack() as stack:
        sources = [stack.enter_context(shard.path.open("rb", buffering=0)) for shard in shards]
        for number in range(len(shards[0].sizes_C)):
            for skipped, width in ((0, code_size), (code_size, _ID_BYTES)):  # all codes, then all ids
                for shard, source in zip(shards, sources, strict=True):
                    size = int(shard.sizes_C[number])
                    file.write(_read(source, int(shard.offsets_C[number]) + size * skipped, size * width))


def _read(source: BinaryIO, offset: int, num_bytes: int) -> bytes:
    data = os.pread(source.fileno(), num_bytes, offset)
    if len(data) != num_bytes:
        raise ExportError(f"{source.name}: ends early. Start again: the build's left-overs are damaged")
    return data
