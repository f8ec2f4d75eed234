"""Synthetic item vectors and interests with the structure of real ones, for any catalogue size.

Items lie in clusters, a few of them large and most small, and the clusters lie in a space of fewer dimensions
than the vectors have. Norms vary, and are larger for more popular items. Each interest of a request lies near
one cluster, a large one more often: it is the mean of a few points of the cluster, as a trained interest is a
mean of history items.

Everything follows from the seed. Items are drawn and written a chunk at a time, so that 10^7 of them need
little memory. Rows are in order of popularity, as those of a run; clusters are spread over all rows.

Legend: N items, D embedding, C clusters, Q requests, K interests, L history length.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

CHUNK_SIZE: Final = 65_536
"""Items drawn at a time; another size gives other vectors from the same seed."""

_ITEMS_PER_CLUSTER: Final = 200
_CROWDING: Final = 0.8
"""Exponent of the clusters' sizes: the r-th largest is proportional to r to the power of minus this."""
_SPREAD: Final = 0.6
"""Distance of items from their cluster's centre, in lengths of the centre."""
_NORM_SPREAD: Final = 0.25
"""Standard deviation of the logarithm of the norms."""
_NORM_SLOPE: Final = 0.04
"""Growth of the logarithm of the norm when an item is e times as popular."""
_ATTENDED_ITEMS: Final = 5


@dataclass(frozen=True, kw_only=True)
class VectorSpace:
    """Distribution of items and interests."""

    num_items: int
    embedding_dim: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_items < 1 or self.embedding_dim < 2:
            raise ValueError(
                f"{self.num_items} items of width {self.embedding_dim}: at least 1 of width 2 are needed"
            )

    def write_items(self, path: Path) -> None:
        """Write the item vectors, float32 [N, D], as a .npy file, a chunk at a time."""
        vectors_ND = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(self.num_items, self.embedding_dim)
        )
        centres_CD = self._centres_CD()
        for number, start in enumerate(range(0, self.num_items, CHUNK_SIZE)):
            stop = min(start + CHUNK_SIZE, self.num_items)
            vectors_ND[start:stop] = self._chunk(centres_CD, number, start, stop)
        vectors_ND.flush()

    def interests(self, num_requests: int, num_interests: int = 4) -> NDArray[np.float32]:
        """Return interests of so many requests, float32 [Q, K, D]."""
        rng = np.random.default_rng((self.seed, 1))
        centres_CD = self._centres_CD()
        clusters_QK = self._clusters(rng, num_requests * num_interests).reshape(num_requests, num_interests)
        shape = (num_requests, num_interests, _ATTENDED_ITEMS, self.embedding_dim)
        items_QKAD = _around(centres_CD[clusters_QK][:, :, None, :], rng, shape)
        return np.ascontiguousarray(items_QKAD.mean(axis=2), np.float32)

    def histories(
        self, num_requests: int, *, length: int = 20, num_tastes: int = 4
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return histories of requests: items of a few clusters each, the popular ones more often.

        Returns:
            Rows, int64 [Q, L], newest first and padded with 0, and lengths, int64 [Q], from half of L to L.
        """
        rng = np.random.default_rng((self.seed, 3))
        cluster_N = self._item_clusters()
        order_N = np.argsort(cluster_N, kind="stable")  # within a cluster the most popular first
        bounds_C = np.searchsorted(cluster_N, np.arange(self.num_clusters + 1), sorter=order_N)
        # Clusters of random items: a large cluster is the taste of more users.
        tastes_QT = cluster_N[rng.integers(self.num_items, size=(num_requests, num_tastes))]
        taste_QL = np.take_along_axis(tastes_QT, rng.integers(num_tastes, size=(num_requests, length)), 1)
        first_QL, size_QL = bounds_C[taste_QL], bounds_C[taste_QL + 1] - bounds_C[taste_QL]
        places_QL = first_QL + (rng.random(taste_QL.shape) ** 2 * size_QL).astype(np.int64)
        rows_QL = order_N[places_QL].astype(np.int64)
        lengths_Q = rng.integers((length + 1) // 2, length + 1, num_requests)
        rows_QL[np.arange(length) >= lengths_Q[:, None]] = 0
        return rows_QL, lengths_Q

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return max(1, self.num_items // _ITEMS_PER_CLUSTER)

    def _chunk(
        self, centres_CD: NDArray[np.float32], number: int, start: int, stop: int
    ) -> NDArray[np.float32]:
        rng = self._rng_of(number)
        centres = centres_CD[self._clusters(rng, stop - start)]
        directions = _around(centres, rng, (stop - start, self.embedding_dim))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        # Rows are in order of popularity, which falls with the rank.
        log_popularity = np.log(self.num_items / (1 + np.arange(start, stop)))
        log_norms = _NORM_SLOPE * log_popularity + _NORM_SPREAD * rng.standard_normal(stop - start)
        directions *= np.exp(log_norms)[:, None].astype(np.float32)
        return directions

    def _item_clusters(self) -> NDArray[np.int32]:
        """Return the cluster of every item."""
        return np.concatenate(
            [
                self._clusters(self._rng_of(number), min(CHUNK_SIZE, self.num_items - start)).astype(np.int32)
                for number, start in enumerate(range(0, self.num_items, CHUNK_SIZE))
            ]
        )

    def _rng_of(self, number: int) -> np.random.Generator:
        """Return the generator of a chunk's items; it draws their clusters first."""
        return np.random.default_rng((self.seed, 2, number))

    def _centres_CD(self) -> NDArray[np.float32]:
        """Return centres of length about 1 in half of the dimensions, and a little in all of them."""
        rng = np.random.default_rng((self.seed, 0))  # other streams: (seed, 1), (seed, 2, chunk), (seed, 3)
        inner = max(2, self.embedding_dim // 2)
        basis = rng.standard_normal((inner, self.embedding_dim)) / np.sqrt(inner * self.embedding_dim)
        centres = rng.standard_normal((self.num_clusters, inner)) @ basis
        centres += 0.1 * rng.standard_normal(centres.shape) / np.sqrt(self.embedding_dim)
        single: NDArray[np.float32] = centres.astype(np.float32)
        return single

    def _clusters(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        weights_C = np.arange(1, self.num_clusters + 1, dtype=np.float64) ** -_CROWDING
        bounds_C = np.cumsum(weights_C / weights_C.sum())
        return np.minimum(np.searchsorted(bounds_C, rng.random(size)), self.num_clusters - 1)


def _around(
    centres: NDArray[np.float32], rng: np.random.Generator, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    noise: NDArray[np.float32] = rng.standard_normal(shape, np.float32)
    noise *= np.float32(_SPREAD / np.sqrt(shape[-1]))
    noise += centres
    return noise
