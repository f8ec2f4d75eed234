"""A built index, searched as a server searches it: a search for each interest, then true scores.

Legend: B requests of a batch, Q requests, K interests, S results of a search, D embedding, N items,
M candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.manifest import CollectionInfo, IndexInfo
from re4.bundle.milvus.collection_index import CollectionIndex
from re4.bundle.scoring.rescoring import best_rescored
from re4.common.errors import BundleMismatchError
from re4.common.faiss_settings import use_matrix_products
from re4.common.shared_list_search import SharedBudget, SharedListSearch
from re4.exporting.index.families import (
    FAMILIES,
    MILVUS_FAMILIES,
    IndexFamily,
    SearchParameters,
    quarter_powers,
)
from re4.exporting.index.index_file import read_mapped
from re4.exporting.storage.mapped_vectors import release_pages

_K_FACTORS: Final = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_NATIVE_POOL_FACTORS: Final = (1.5, 2, 3, 4, 6)
_CHUNK_REQUESTS: Final = 64
_MAX_SHARING: Final = 64
"""Requests whose reaches determine the reach factors to try."""

SearchResults: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""`scores_BKS`, which are approximate where the index holds codes, and `rows_BKS`, -1 where there is none."""


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """An index that holds row i of the item vectors under the id i."""

    index: Any
    factory: str
    """The factory string that it was made from."""
    family: IndexFamily
    is_native: bool = False
    """Whether compiled code may scan its lists. The recalls of tuning and gates are those of FAISS alone, so
    that they do not depend on the machine; the compiled code of a server finds at least as much."""
    collection: CollectionInfo | None = None
    """Where the index is, if it is in Milvus."""

    def __post_init__(self) -> None:
        """Set FAISS's way of comparing for all searches of this process."""
        use_matrix_products()

    @classmethod
    def open(cls, path: Path, info: IndexInfo, shape: tuple[int, ...]) -> "BuiltIndex":
        """Read an index from its file, memory-mapped where its kind allows it, or open its collection.

        Args:
            path: The file.
            info: The index.
            shape: Number and width of the item vectors.

        Raises:
            BundleMismatchError: the kind is not known here.
        """
        if info.collection is not None:
            return cls(
                index=CollectionIndex(info.collection, *shape),
                factory=f"Milvus {info.collection.index_type}",
                family=MILVUS_FAMILIES[info.collection.index_type],
                collection=info.collection,
            )
        family = next((family for family in FAMILIES if family.name == info.kind), None)
        if family is None:
            raise BundleMismatchError(f"{path}: of the kind {info.kind!r}, which this code does not know")
        return cls(index=read_mapped(path), factory=info.factory or info.kind, family=family)

    @property
    def kind(self) -> str:
        """The kind's name in the manifest."""
        return self.family.name

    def ladders(
        self, num_candidates: int, sharing_QKD: NDArray[np.float32] | None = None
    ) -> list[Sequence[SearchParameters]]:
        """Return the settings to try for a number of candidates: lists, each from cheap to expensive.

        Settings of an index that is not exact lack the `pool_factor`.

        Args:
            num_candidates: Of a request.
            sharing_QKD: Interests of requests that share one budget, where the family allows it; None for a
                budget of each interest.
        """
        if self.family.is_exact:
            return [self.family.settings(self.index, num_candidates)]
        shared = None
        if sharing_QKD is not None and self.family.shares_lists:
            numbers = quarter_powers(sharing_QKD.shape[1] * self.index.nlist)
            shared = [
                {"shared_nprobe": budget.num_lists, "reach_drop": budget.reach_drop}
                for budget in self._shared_search.budgets(sharing_QKD[:_MAX_SHARING], numbers)
            ]
        if shared is not None and self.is_native:  # one pool has no results of each interest
            return [
                [{**settings, "k_factor": 1, "pool_factor": factor} for settings in shared]
                for factor in _NATIVE_POOL_FACTORS
            ]
        factors = [
            k_factor
            for k_factor in _K_FACTORS
            if num_candidates * k_factor <= max(num_candidates, self.index.ntotal)
        ]
        return [
            [
                {**settings, "k_factor": k_factor}
                for settings in shared or self.family.settings(self.index, ceil(num_candidates * k_factor))
            ]
            for k_factor in factors
        ]

    def search(
        self, settings: SearchParameters, interests_BKD: NDArray[np.float32], num_candidates: int
    ) -> SearchResults:
        """Search for each interest, or with a shared budget for the promising ones."""
        num_requests, num_interests, embedding_dim = interests_BKD.shape
        num_found = min(ceil(num_candidates * settings.get("k_factor", 1)), self.index.ntotal)
        if "shared_nprobe" in settings:
            budget = SharedBudget(int(settings["shared_nprobe"]), settings["reach_drop"])
            pool_size = _pool_size(settings, num_candidates, num_interests * num_found)
            return self._shared_search.search(interests_BKD, num_found, budget, pool_size=pool_size)
        scores_QS, rows_QS = self.index.search(
            np.ascontiguousarray(interests_BKD.reshape(-1, embedding_dim)),
            num_found,
            params=self.family.parameters(settings),
        )
        shape = (num_requests, num_interests, -1)
        return scores_QS.reshape(shape), rows_QS.reshape(shape)

    @cached_property
    def _shared_search(self) -> SharedListSearch:
        return SharedListSearch(self.index, is_native=self.is_native)

    def search_compiled(
        self,
        settings: SearchParameters,
        interests_BKD: NDArray[np.float32],
        vectors_ND: NDArray[np.float32],
        num_candidates: int,
    ) -> bool:
        """Search, score and merge by compiled code, as a server does; return whether there is any here."""
        if "shared_nprobe" not in settings:
            return False
        budget = SharedBudget(int(settings["shared_nprobe"]), settings["reach_drop"])
        pool_size = ceil(num_candidates * settings["pool_factor"])
        best = self._compiled_search.best(
            interests_BKD, budget, vectors_ND, num_candidates, pool_size=pool_size
        )
        return best is not None

    @cached_property
    def _compiled_search(self) -> SharedListSearch:
        return SharedListSearch(self.index)

    def candidates(
        self,
        settings: SearchParameters,
        interests_QKD: NDArray[np.float32],
        vectors_ND: NDArray[np.float32],
        num_candidates: int,
    ) -> NDArray[np.int64]:
        """Search and merge in chunks of requests; return candidate rows [Q, M], -1 for none."""
        num_candidates = min(num_candidates, int(self.index.ntotal))
        found = []
        for start in range(0, len(interests_QKD), _CHUNK_REQUESTS):
            batch_BKD = interests_QKD[start : start + _CHUNK_REQUESTS]
            results = self.search(settings, batch_BKD, num_candidates)
            found.append(merge_results(results, settings, batch_BKD, vectors_ND, num_candidates))
            release_pages(vectors_ND)
        return np.concatenate(found)


def _pool_size(settings: SearchParameters, num_candidates: int, most: int) -> int:
    return ceil(num_candidates * settings["pool_factor"]) if "pool_factor" in settings else most


def merge_results(
    results: SearchResults,
    settings: SearchParameters,
    interests_BKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_candidates: int,
) -> NDArray[np.int64]:
    """Score results by the item vectors; return the best rows over all interests, [B, M], -1 for none."""
    scores_BKS, rows_BKS = results
    size = _pool_size(settings, num_candidates, rows_BKS.shape[1] * rows_BKS.shape[2])
    return best_rescored(scores_BKS, rows_BKS, interests_BKD, vectors_ND, size, num_candidates)[0]
