"""Building an index from a FAISS factory string: checked, trained on a sample, filled (see `filling.py`).

The vectors may be memory-mapped: no more than a sample and a piece of them is held beside the index. Knows
nothing about recall.

Legend: N items, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError, UsageError
from re4.common.faiss_settings import use_matrix_products
from re4.exporting.index.cagra import build_cagra, check_cagra, empty_cagra, links_of_cagra
from re4.exporting.index.devices import Device, check_device
from re4.exporting.index.families import FAMILIES, FLAT, HNSW, IndexFamily, Settings
from re4.exporting.index.fill import FILLED, fill, fill_on_disk
from re4.exporting.index.index_file import write_index
from re4.exporting.index.ivf_training import train_lists
from re4.exporting.index.memory_estimate import Need, check_memory, need_of
from re4.exporting.storage.build_cache import Checkpoints
from re4.exporting.storage.eta import Note, unnoted
from re4.exporting.storage.mapped_vectors import rows_of

_MIN_TRAINING: Final = 65_536
_TRAINING_PER_LIST: Final = 64
_SEED: Final = 20220425
_TRAINED: Final = "trained.faiss"
_K_FACTORS: Final = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_faiss: Any = faiss  # its type hints are incomplete


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """A FAISS index that holds row i of the item vectors under the id i, and how it can be searched."""

    index: Any
    factory: str
    """The factory string that it was made from."""
    family: IndexFamily

    def __post_init__(self) -> None:
        """Have FAISS compare by matrix products from now on."""
        use_matrix_products()

    @property
    def kind(self) -> str:
        """As the manifest says it."""
        return self.family.name

    def ladders(self, num_candidates: int) -> list[Sequence[Settings]]:
        """Settings to try for a number of candidates: lists in which each costs more than the one before.

        Those of an index that is not exact lack the `pool_factor`.
        """
        if self.family.is_exact:
            return [self.family.settings(self.index, num_candidates)]
        factors = [
            k_factor
            for k_factor in _K_FACTORS
            if num_candidates * k_factor <= max(num_candidates, self.index.ntotal)
        ]
        return [
            [
                {**settings, "k_factor": k_factor}
                for settings in self.family.settings(self.index, ceil(num_candidates * k_factor))
            ]
            for k_factor in factors
        ]


def check_factory(factory: str, embedding_dim: int, device: Device = Device.CPU) -> None:
    """Say at once what would go wrong after long work.

    Raises:
        UsageError: FAISS does not understand the string for this width, makes something of it that no server
            loads or that the device cannot hold, or cannot build it here.
    """
    check_device(factory, _empty_index(factory, embedding_dim)[0], device)
    if links_of_cagra(factory):
        check_cagra()


def family_of(factory: str, embedding_dim: int) -> IndexFamily:
    """The family of what a factory string makes.

    Raises:
        UsageError: as `check_factory`.
    """
    return _empty_index(factory, embedding_dim)[1]


def memory_need(factory: str, num_items: int, embedding_dim: int, memory_limit: int | None = None) -> Need:
    """What an index over so many items takes, as `need_of`; nothing is built.

    Raises:
        UsageError: as `check_factory`.
    """
    return need_of(_empty_index(factory, embedding_dim)[0], num_items, memory_limit)


def training_size(num_lists: int) -> int:
    """How many vectors an index of so many lists (0: none) is trained on, where there are so many."""
    return max(_MIN_TRAINING, _TRAINING_PER_LIST * num_lists)


def build_index(
    factory: str,
    vectors_ND: NDArray[np.float32],
    *,
    stages: Checkpoints | None = None,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
    note: Note = unnoted,
) -> BuiltIndex:
    """Train and fill an index.

    Args:
        factory: A FAISS factory string.
        vectors_ND: Item vectors, finite, C order; may be memory-mapped.
        stages: Where finished stages are kept, and found again; None to build in memory alone. The stage
            `FILLED` is the finished index's file.
        memory_limit: Bytes that may be held at once; None for no limit.
        device: What it will be searched on.
        note: Is told how far it is.

    Raises:
        UsageError: as `check_factory`.
        ExportError: there are too few items to train such an index on, it takes more memory than the limit,
            or FAISS gives up.
    """
    use_matrix_products()
    base, family = _empty_index(factory, vectors_ND.shape[1])
    num_lists = base.nlist if isinstance(base, faiss.IndexIVF) else 0
    if num_lists > len(vectors_ND):
        raise ExportError(
            f"{factory}: {num_lists} lists for {len(vectors_ND)} items, at most one for an item is possible. "
            "Choose fewer lists, or --index auto"
        )
    need = need_of(base, len(vectors_ND), memory_limit)
    check_memory(factory, need, len(vectors_ND), memory_limit)
    try:
        if num_links := links_of_cagra(factory):
            base = _build_on_gpu(vectors_ND, num_links, stages, note)
        elif stages is None:
            _train(base, vectors_ND, training_size(num_lists))
            fill(base, vectors_ND, device, note)
        else:
            base = _train_once(base, vectors_ND, training_size(num_lists), stages, note)
            base = fill_on_disk(base, vectors_ND, need, device, stages, note)
    except (RuntimeError, MemoryError) as error:
        raise ExportError(
            f"{factory}: FAISS could not build it over {len(vectors_ND)} items of width "
            f"{vectors_ND.shape[1]}: {str(error)[-300:]}. Choose another --index, such as flat"
        ) from error
    return BuiltIndex(index=base, factory=factory, family=family)


def _build_on_gpu(
    vectors_ND: NDArray[np.float32], num_links: int, stages: Checkpoints | None, note: Note
) -> Any:
    """The finished graph, kept as a stage, or as an earlier try left it."""
    if stages is not None and stages.has(FILLED):
        return faiss.read_index(str(stages.path(FILLED)))
    note("building on the GPU")
    graph = build_cagra(vectors_ND, num_links)
    if stages is not None:
        with stages.finishing(FILLED) as part:
            write_index(graph, part)
    return graph


def _train_once(
    base: Any, vectors_ND: NDArray[np.float32], size: int, stages: Checkpoints, note: Note
) -> Any:
    """The trained index: as an earlier try left it, or trained now and kept."""
    if base.is_trained or stages.has(FILLED):
        return base
    if stages.has(_TRAINED):
        return faiss.read_index(str(stages.path(_TRAINED)))
    note("training")
    _train(base, vectors_ND, size)
    with stages.finishing(_TRAINED) as part:
        write_index(base, part)
    return base


def _train(base: Any, vectors_ND: NDArray[np.float32], size: int) -> None:
    if not base.is_trained:
        _hush(base)
        sample_TD = _sample(vectors_ND, size)
        if isinstance(base, faiss.IndexIVF):
            train_lists(base, sample_TD)
        else:
            base.train(sample_TD)


def _empty_index(factory: str, embedding_dim: int) -> tuple[Any, IndexFamily]:
    """The index and its family. Without a refinement: whatever is found is scored by the vectors anyway."""
    if num_links := links_of_cagra(factory):
        return empty_cagra(embedding_dim, num_links), HNSW
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


def _hush(base: Any) -> None:
    """Keep FAISS from wishing, on standard error, for more training vectors: there are no more."""
    for part in (base, getattr(base, "pq", base)):
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1


def _sample(vectors_ND: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if len(vectors_ND) <= size:
        return np.ascontiguousarray(vectors_ND)
    rows = np.random.default_rng(_SEED).choice(len(vectors_ND), size, replace=False)
    return rows_of(vectors_ND, np.sort(rows))
