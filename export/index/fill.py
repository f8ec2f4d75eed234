"""Filling a trained index with the item vectors, piece by piece, and going on where an earlier try stopped.

FAISS's growing arrays get their final size first, so that they never take twice what they hold. Lists of many
bytes are built in shards that are merged in the file and mapped from there; other indexes are filled in one
piece, and saved every few minutes. Knows nothing about training.

Legend: N items, D embedding.
"""

from time import monotonic
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.exporting.index.coarse_quantizer import probe_by_reach
from re4.exporting.index.devices import Device
from re4.exporting.index.index_file import merge_shards, read_mapped, write_index
from re4.exporting.index.memory_estimate import Need
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import Note, TimeLeft
from re4.exporting.storage.mapped_vectors import pieces

FILLED: Final = "filled.faiss"
"""The stage: the finished index."""

_SAVED: Final = "partly-filled.faiss"
_SECONDS_BETWEEN_SAVES: Final = 300.0


def fill(base: Any, vectors_ND: NDArray[np.float32], device: Device, note: Note) -> None:
    """Add all items to a trained, empty index in this process's memory; row i gets the id i."""
    _reserve(base, len(vectors_ND))
    _add(base, vectors_ND, base.ntotal, len(vectors_ND), note)
    probe_by_reach(base, vectors_ND, device)


def fill_on_disk(
    base: Any,
    vectors_ND: NDArray[np.float32],
    need: Need,
    device: Device,
    stages: Checkpoints,
    note: Note,
) -> Any:
    """Fill a trained, empty index so that it can be interrupted; the stage `FILLED` is finished afterwards.

    Args:
        base: The index.
        vectors_ND: Finite, C order; may be memory-mapped.
        need: As `need_of` the index.
        device: What it will be searched on.
        stages: Where the stages are kept.
        note: Is told how far it is.

    Returns:
        The filled index: the one given, or where it was built in shards, one that is mapped from its file.
    """
    if stages.has(FILLED):
        return read_mapped(stages.path(FILLED))
    if need.shard_bytes:
        _fill_shards(base, vectors_ND, need, device, stages, note)
        return read_mapped(stages.path(FILLED))
    if stages.has(_SAVED):
        base = faiss.read_index(str(stages.path(_SAVED)))
    else:
        _reserve(base, len(vectors_ND))
    _add(base, vectors_ND, base.ntotal, len(vectors_ND), note, stages)
    probe_by_reach(base, vectors_ND, device)
    with stages.finishing(FILLED) as part:
        write_index(base, part)
    stages.drop(_SAVED)
    return base


def _add(
    base: Any,
    vectors_ND: NDArray[np.float32],
    first: int,
    stop: int,
    note: Note,
    stages: Checkpoints | None = None,
) -> None:
    time_left = TimeLeft(note, "filling", len(vectors_ND), done=first)
    saved = monotonic()
    for start, piece in pieces(vectors_ND, first=first, stop=stop):
        if stages is not None and monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            with stages.finishing(_SAVED) as part:
                write_index(base, part)
            saved = monotonic()
        base.add(piece)
        time_left.at(start + len(piece))


def _fill_shards(
    trained: Any,
    vectors_ND: NDArray[np.float32],
    need: Need,
    device: Device,
    stages: Checkpoints,
    note: Note,
) -> None:
    num_items = len(vectors_ND)
    num_shards = -(-need.lists_bytes // need.shard_bytes)
    bounds = np.linspace(0, num_items, num_shards + 1).round().astype(np.int64).tolist()
    names = [f"shard-{number + 1}-of-{num_shards}.faiss" for number in range(num_shards)]
    done = [stages.has(name) for name in names]
    time_left = TimeLeft(note, "filling", num_items, done=bounds[sum(done)])
    for name, first, stop, is_done in zip(names, bounds[:-1], bounds[1:], done, strict=True):
        if is_done:
            continue
        shard = faiss.clone_index(trained)
        for start, piece in pieces(vectors_ND, first=first, stop=stop):
            shard.add_with_ids(piece, np.arange(start, start + len(piece)))
            time_left.at(start + len(piece))
        with stages.finishing(name) as part:
            write_index(shard, part)
        del shard
    note("merging the shards")
    probe_by_reach(trained, vectors_ND, device)
    with stages.finishing(FILLED) as part:
        merge_shards(trained, [stages.path(name) for name in names], part)
    for name in names:
        stages.drop(name)


def _reserve(base: Any, num_items: int) -> None:
    """Give arrays of vectors the size that they will have: an array that is emptied again keeps its room."""
    flat = faiss.downcast_index(base.storage) if isinstance(base, faiss.IndexHNSW) else base
    if isinstance(flat, faiss.IndexFlatCodes) and flat.ntotal == 0:
        flat.codes.resize(num_items * flat.code_size)
        flat.codes.resize(0)
