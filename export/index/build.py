"""Building an index from a FAISS factory string: checked, trained on a sample, then filled.

The vectors may be memory-mapped: at most a sample and one chunk of them is held beside the index.

Legend: N items, D embedding.
"""

from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError, UsageError
from re4.common.faiss_settings import use_matrix_products
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.coarse_quantizer import train_by_distance
from re4.exporting.index.families import FAMILIES, FLAT, HNSW, IndexFamily
from re4.exporting.index.fill import FILLED, fill, fill_on_disk
from re4.exporting.index.gpu import build_cagra, cagra_degree, check_cagra, check_device, empty_cagra
from re4.exporting.index.index_file import write_index
from re4.exporting.index.memory_estimate import MemoryEstimate, check_memory, estimate_memory
from re4.exporting.settings import TargetDevice
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import OnProgress, no_progress
from re4.exporting.storage.mapped_vectors import read_rows

_MIN_TRAINING: Final = 65_536
_TRAINING_PER_LIST: Final = 64
_SEED: Final = 20220425
_TRAINED: Final = "trained.faiss"
_faiss: Any = faiss  # its type hints are incomplete


def check_factory(factory: str, embedding_dim: int, device: TargetDevice = TargetDevice.CPU) -> None:
    """Refuse a factory string before any long work.

    Raises:
        UsageError: FAISS does not understand the string for this width; it makes an index that no server
            loads, or that the device cannot hold; or it cannot build the index here.
    """
    check_device(factory, _empty_index(factory, embedding_dim)[0], device)
    if cagra_degree(factory):
        check_cagra()


def family_of(factory: str, embedding_dim: int) -> IndexFamily:
    """Return the family of the index that a factory string makes.

    Raises:
        UsageError: as `check_factory`.
    """
    return _empty_index(factory, embedding_dim)[1]


def memory_of_factory(
    factory: str, num_items: int, embedding_dim: int, memory_limit: int | None = None
) -> MemoryEstimate:
    """Estimate the memory of an index over so many items; nothing is built.

    Raises:
        UsageError: as `check_factory`.
    """
    return estimate_memory(_empty_index(factory, embedding_dim)[0], num_items, memory_limit)


def training_size(num_lists: int) -> int:
    """Return the size of the training sample for an index of so many lists; 0 lists for none."""
    return max(_MIN_TRAINING, _TRAINING_PER_LIST * num_lists)


def build_index(
    factory: str,
    vectors_ND: NDArray[np.float32],
    *,
    checkpoints: Checkpoints | None = None,
    memory_limit: int | None = None,
    device: TargetDevice = TargetDevice.CPU,
    on_progress: OnProgress = no_progress,
) -> BuiltIndex:
    """Train and fill an index.

    Args:
        factory: A FAISS factory string.
        vectors_ND: Item vectors, finite, C order; may be memory-mapped.
        checkpoints: Keeps finished stages and gives them back; None to build in memory alone. The stage
            `FILLED` is the finished index's file.
        memory_limit: Bytes that may be held at once; None for no limit.
        device: The device that servers will search on.
        on_progress: Called with the progress.

    Raises:
        UsageError: as `check_factory`.
        ExportError: there are too few items to train such an index on, it needs more memory than the limit,
            or FAISS fails.
    """
    use_matrix_products()
    base, family = _empty_index(factory, vectors_ND.shape[1])
    num_lists = base.nlist if isinstance(base, faiss.IndexIVF) else 0
    if num_lists > len(vectors_ND):
        raise ExportError(
            f"{factory}: {num_lists} lists for {len(vectors_ND)} items, at most one for an item is possible. "
            "Choose fewer lists, or --index auto"
        )
    memory = estimate_memory(base, len(vectors_ND), memory_limit)
    check_memory(factory, memory, len(vectors_ND), memory_limit)
    try:
        if degree := cagra_degree(factory):
            base = _build_on_gpu(vectors_ND, degree, checkpoints, on_progress)
        elif checkpoints is None:
            _train(base, vectors_ND, training_size(num_lists))
            fill(base, vectors_ND, device, on_progress)
        else:
            base = _train_once(base, vectors_ND, training_size(num_lists), checkpoints, on_progress)
            base = fill_on_disk(base, vectors_ND, memory, device, checkpoints, on_progress)
    except (RuntimeError, MemoryError) as error:
        raise ExportError(
            f"{factory}: FAISS could not build it over {len(vectors_ND)} items of width "
            f"{vectors_ND.shape[1]}: {str(error)[-300:]}. Choose another --index, such as flat"
        ) from error
    return BuiltIndex(index=base, factory=factory, family=family)


def _build_on_gpu(
    vectors_ND: NDArray[np.float32], degree: int, checkpoints: Checkpoints | None, on_progress: OnProgress
) -> Any:
    """Return the finished graph: kept by an earlier attempt, or built now and kept."""
    if checkpoints is not None and checkpoints.has(FILLED):
        return faiss.read_index(str(checkpoints.path(FILLED)))
    on_progress("building on the GPU")
    graph = build_cagra(vectors_ND, degree)
    if checkpoints is not None:
        with checkpoints.finishing(FILLED) as part:
            write_index(graph, part)
    return graph


def _train_once(
    base: Any, vectors_ND: NDArray[np.float32], size: int, checkpoints: Checkpoints, on_progress: OnProgress
) -> Any:
    """Return the trained index: kept by an earlier attempt, or trained now and kept."""
    if base.is_trained or checkpoints.has(FILLED):
        return base
    if checkpoints.has(_TRAINED):
        return faiss.read_index(str(checkpoints.path(_TRAINED)))
    on_progress("training")
    _train(base, vectors_ND, size)
    with checkpoints.finishing(_TRAINED) as part:
        write_index(base, part)
    return base


def _train(base: Any, vectors_ND: NDArray[np.float32], size: int) -> None:
    if not base.is_trained:
        _silence_training_warnings(base)
        sample_TD = _sample(vectors_ND, size)
        if isinstance(base, faiss.IndexIVF):
            train_by_distance(base, sample_TD)
        else:
            base.train(sample_TD)


def _empty_index(factory: str, embedding_dim: int) -> tuple[Any, IndexFamily]:
    """Return the index and its family, without a refinement: all results are scored by the vectors anyway."""
    if degree := cagra_degree(factory):
        return empty_cagra(embedding_dim, degree), HNSW
    try:
        index = _faiss.index_factory(embedding_dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"--index {factory}: FAISS cannot make an index of width {embedding_dim} of it: "
            f"{str(error)[-200:]}"
        ) from None
    is_refined = isinstance(index, faiss.IndexRefineFlat)
    base: Any = index
    if is_refined:
        base = faiss.downcast_index(index.base_index)
        base.referenced_objects = [index]  # the wrapper owns it
    name = type(base).__name__
    family = next((one for one in FAMILIES if name in one.faiss_types), None)
    if family is None or base.metric_type != faiss.METRIC_INNER_PRODUCT:
        allowed = sorted(name for one in FAMILIES for name in one.faiss_types)
        raise UsageError(
            f"--index {factory} makes a {name}, which no server loads; choose a factory string that makes "
            f"one of {', '.join(allowed)}"
        )
    if is_refined and family is FLAT:
        raise UsageError(
            f"--index {factory}: a flat index is exact, there is nothing to refine. Use --index flat"
        )
    return base, family


def _silence_training_warnings(base: Any) -> None:
    """Switch off FAISS's warning, on standard error, that it wants more training vectors: there are none."""
    for part in (base, getattr(base, "pq", base)):
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1


def _sample(vectors_ND: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if len(vectors_ND) <= size:
        return np.ascontiguousarray(vectors_ND)
    rows = np.random.default_rng(_SEED).choice(len(vectors_ND), size, replace=False)
    return read_rows(vectors_ND, np.sort(rows))
