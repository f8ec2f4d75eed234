"""Filling a trained index with the item vectors, chunk by chunk; an interrupted fill goes on later.

FAISS's growing arrays get their final size first, so that they never take twice the memory of their content.
Large inverted lists are built in shards, merged in the file and mapped from there. Other indexes are filled
in one piece and saved every few minutes.

Legend: N items, D embedding.
"""

from time import monotonic
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.exporting.index.coarse_quantizer import search_by_reach
from re4.exporting.index.index_file import merge_shards, read_mapped, write_index
from re4.exporting.index.memory_estimate import MemoryEstimate
from re4.exporting.settings import TargetDevice
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import EtaReporter, OnProgress
from re4.exporting.storage.mapped_vectors import chunks

FILLED: Final = "filled.faiss"
"""Name of the stage of the finished index."""

_SAVED: Final = "partly-filled.faiss"
_SECONDS_BETWEEN_SAVES: Final = 300.0


def fill(base: Any, vectors_ND: NDArray[np.float32], device: TargetDevice, on_progress: OnProgress) -> None:
    """Add all items to a trained, empty index in memory; row i gets the id i."""
    _reserve(base, len(vectors_ND))
    _add(base, vectors_ND, base.ntotal, len(vectors_ND), on_progress)
    search_by_reach(base, vectors_ND, device)


def fill_on_disk(
    base: Any,
    vectors_ND: NDArray[np.float32],
    memory: MemoryEstimate,
    device: TargetDevice,
    checkpoints: Checkpoints,
    on_progress: OnProgress,
) -> Any:
    """Fill a trained, empty index so that it can be interrupted; the stage `FILLED` is finished afterwards.

    Args:
        base: The index.
        vectors_ND: Finite, C order; may be memory-mapped.
        memory: The estimate for the index.
        device: The device that servers will search on.
        checkpoints: Keeps the stages.
        on_progress: Called with the progress.

    Returns:
        The filled index: the one given, or where it was built in shards, one that is mapped from its file.
    """
    if checkpoints.has(FILLED):
        return read_mapped(checkpoints.path(FILLED))
    if memory.shard_bytes:
        _fill_shards(base, vectors_ND, memory, device, checkpoints, on_progress)
        return read_mapped(checkpoints.path(FILLED))
    if checkpoints.has(_SAVED):
        base = faiss.read_index(str(checkpoints.path(_SAVED)))
    else:
        _reserve(base, len(vectors_ND))
    _add(base, vectors_ND, base.ntotal, len(vectors_ND), on_progress, checkpoints)
    search_by_reach(base, vectors_ND, device)
    with checkpoints.finishing(FILLED) as part:
        write_index(base, part)
    checkpoints.drop(_SAVED)
    return base


def _add(
    base: Any,
    vectors_ND: NDArray[np.float32],
    first: int,
    stop: int,
    on_progress: OnProgress,
    checkpoints: Checkpoints | None = None,
) -> None:
    eta = EtaReporter(on_progress, "filling", len(vectors_ND), done=first)
    saved = monotonic()
    for start, chunk in chunks(vectors_ND, first=first, stop=stop):
        if checkpoints is not None and monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            with checkpoints.finishing(_SAVED) as part:
                write_index(base, part)
            saved = monotonic()
        base.add(chunk)
        eta.at(start + len(chunk))


def _fill_shards(
    trained: Any,
    vectors_ND: NDArray[np.float32],
    memory: MemoryEstimate,
    device: TargetDevice,
    checkpoints: Checkpoints,
    on_progress: OnProgress,
) -> None:
    num_items = len(vectors_ND)
    num_shards = -(-memory.lists_bytes // memory.shard_bytes)
    bounds = np.linspace(0, num_items, num_shards + 1).round().astype(np.int64).tolist()
    names = [f"shard-{number + 1}-of-{num_shards}.faiss" for number in range(num_shards)]
    done = [checkpoints.has(name) for name in names]
    eta = EtaReporter(on_progress, "filling", num_items, done=bounds[sum(done)])
    for name, first, stop, is_done in zip(names, bounds[:-1], bounds[1:], done, strict=True):
        if is_done:
            continue
        shard = faiss.clone_index(trained)
        for start, chunk in chunks(vectors_ND, first=first, stop=stop):
            shard.add_with_ids(chunk, np.arange(start, start + len(chunk)))
            eta.at(start + len(chunk))
        with checkpoints.finishing(name) as part:
            write_index(shard, part)
        del shard
    on_progress("merging the shards")
    search_by_reach(trained, vectors_ND, device)
    with checkpoints.finishing(FILLED) as part:
        merge_shards(trained, [checkpoints.path(name) for name in names], part)
    for name in names:
        checkpoints.drop(name)


def _reserve(base: Any, num_items: int) -> None:
    """Allocate arrays of vectors at their final size: an array that is emptied again keeps its capacity."""
    flat = faiss.downcast_index(base.storage) if isinstance(base, faiss.IndexHNSW) else base
    if isinstance(flat, faiss.IndexFlatCodes) and flat.ntotal == 0:
        flat.codes.resize(num_items * flat.code_size)
        flat.codes.resize(0)
