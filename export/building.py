"""Building an index from a FAISS factory string: checked, trained on a sample, filled in chunks.

The vectors may be memory-mapped: no more than a sample and a chunk of them is held beside the index. Knows
nothing about recall.

Legend: N items, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from export.indexes import FAMILIES, FLAT, IndexFamily, Settings
from re4.errors import ExportError, UsageError

CHUNK_SIZE: Final = 65_536
"""Items added to the index at once."""

_MIN_TRAINING: Final = 65_536
_TRAINING_PER_LIST: Final = 64
_SEED: Final = 20220425
_K_FACTORS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_faiss: Any = faiss  # its type hints are incomplete


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """A FAISS index that holds row i of the item vectors under the id i, and how it can be searched."""

    index: Any
    """Answers with true inner products."""
    factory: str
    """The factory string of the index itself, without the refinement."""
    family: IndexFamily
    is_refined: bool
    """Whether the exact vectors rank what the codes found."""

    @property
    def kind(self) -> str:
        """As the manifest says it."""
        return f"{self.family.name}-refined" if self.is_refined else self.family.name

    def ladders(self, num_results: int) -> list[Sequence[Settings]]:
        """Settings to try for a number of results: lists in which each costs more than the one before."""
        if not self.is_refined:
            return [self.family.settings(self.index, num_results)]
        base = faiss.downcast_index(self.index.base_index)
        factors = [
            k_factor for k_factor in _K_FACTORS if num_results * k_factor <= max(num_results, base.ntotal)
        ]
        return [
            [
                {**settings, "k_factor": k_factor}
                for settings in self.family.settings(base, num_results * k_factor)
            ]
            for k_factor in factors
        ]

    def parameters(self, settings: Settings) -> Any:
        """The per-call FAISS search parameters of a setting."""
        base = self.family.parameters(settings)
        if not self.is_refined:
            return base
        return _faiss.IndexRefineSearchParameters(
            k_factor=float(settings["k_factor"]), base_index_params=base
        )


def check_factory(factory: str, embedding_dim: int) -> None:
    """Say at once what would go wrong after long work.

    Raises:
        UsageError: FAISS does not understand the string for this width, or makes something of it that no
            server loads.
    """
    _empty_index(factory, embedding_dim)


def build_index(factory: str, vectors_ND: NDArray[np.float32]) -> BuiltIndex:
    """Train and fill an index.

    Args:
        factory: A FAISS factory string.
        vectors_ND: Item vectors, finite, C order; may be memory-mapped.

    Raises:
        UsageError: as `check_factory`.
        ExportError: there are too few items to train such an index on, or FAISS gives up.
    """
    built = _empty_index(factory, vectors_ND.shape[1])
    base = faiss.downcast_index(built.index.base_index) if built.is_refined else built.index
    num_lists = base.nlist if isinstance(base, faiss.IndexIVF) else 0
    if num_lists > len(vectors_ND):
        raise ExportError(
            f"{factory}: {num_lists} lists for {len(vectors_ND)} items, at most one for an item is possible. "
            "Choose fewer lists, or --index auto"
        )
    try:
        if not built.index.is_trained:
            _hush(base)
            built.index.train(_sample(vectors_ND, max(_MIN_TRAINING, _TRAINING_PER_LIST * num_lists)))
        for start in range(0, len(vectors_ND), CHUNK_SIZE):
            built.index.add(np.ascontiguousarray(vectors_ND[start : start + CHUNK_SIZE]))
    except (RuntimeError, MemoryError) as error:
        raise ExportError(
            f"{factory}: FAISS could not build it over {len(vectors_ND)} items of width "
            f"{vectors_ND.shape[1]}: {str(error)[-300:]}. Choose another --index, such as flat"
        ) from error
    return built


def _empty_index(factory: str, embedding_dim: int) -> BuiltIndex:
    try:
        index = _faiss.index_factory(embedding_dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"--index {factory}: FAISS cannot make an index of width {embedding_dim} of it: "
            f"{str(error)[-200:]}"
        ) from None
    is_refined = isinstance(index, faiss.IndexRefineFlat)
    base = faiss.downcast_index(index.base_index) if is_refined else index
    name = type(base).__name__
    family = next((one for one in FAMILIES if name in one.exact_types | one.coded_types), None)
    if family is None or base.metric_type != faiss.METRIC_INNER_PRODUCT:
        allowed = sorted(name for one in FAMILIES for name in one.exact_types | one.coded_types)
        raise UsageError(
            f"--index {factory} makes a {name}, which no server loads; choose a factory string that makes "
            f"one of {', '.join(allowed)}"
        )
    if is_refined and family is FLAT:
        raise UsageError(
            f"--index {factory}: a flat index is exact, there is nothing to refine. Use --index flat"
        )
    if name in family.coded_types and not is_refined:
        # The wrapper does not own what it wraps; FAISS's Python layer keeps a reference to it.
        index, is_refined = faiss.IndexRefineFlat(index), True
    return BuiltIndex(index=index, factory=factory, family=family, is_refined=is_refined)


def _hush(base: Any) -> None:
    """Keep FAISS from wishing, on standard error, for more training vectors: there are no more."""
    for part in (base, getattr(base, "pq", base)):
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1


def _sample(vectors_ND: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if len(vectors_ND) <= size:
        return np.ascontiguousarray(vectors_ND)
    rows = np.random.default_rng(_SEED).choice(len(vectors_ND), size, replace=False)
    return np.ascontiguousarray(vectors_ND[np.sort(rows)])  # sorted: a mapped file is read in one direction
