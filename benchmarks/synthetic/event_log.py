"""Event logs of any size with planted interests and popularity skew, seeded.

Items come in clusters, a few popular ones and many others, and within a cluster few items get most events. A
user likes a few clusters and takes each event from one of them; lengths of histories are skewed as well.
A log is written part by part, so that memory does not grow with it; the same seed gives the same bytes.

Legend: U users of a part, E events of a part, T tastes, C clusters.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.console import progress
from re4.common.files import replacing

_PART_USERS: Final = 50_000
_MEAN_EVENTS: Final = 40
_MIN_EVENTS: Final = 5
_SKEW: Final = 3
"""Of a cluster's items: the share of events that the first x of them get is the cube root of x."""
_SPAN_S: Final = 180 * 86_400
_START_S: Final = 1_700_000_000


@dataclass(frozen=True, kw_only=True)
class EventSpace:
    """Distribution of items and of users' tastes."""

    num_items: int
    num_tastes: int = 4
    """Clusters that a user likes."""
    cluster_items: int = 200
    """Approximate number of items of a cluster."""
    seed: int = 0

    @property
    def num_clusters(self) -> int:
        """Number of clusters, at least as many as a user likes."""
        return max(self.num_tastes, self.num_items // self.cluster_items)

    def part(self, number: int, num_users: int) -> pl.DataFrame:
        """Return events of one part's users by time: `user` (int64), `item` (int64), `timestamp` (seconds).

        Every user has at least five events.
        """
        rng = np.random.default_rng((self.seed, number))
        extra_U = np.minimum(
            rng.pareto(1.6, num_users) * 0.6 * (_MEAN_EVENTS - _MIN_EVENTS), 50 * _MEAN_EVENTS
        )
        num_U = _MIN_EVENTS + extra_U.astype(np.int64)
        tastes_UT = self._skewed(rng.random((num_users, self.num_tastes)), self.num_clusters, 2)
        user_E = np.repeat(np.arange(num_users), num_U)
        cluster_E = tastes_UT[user_E, rng.integers(self.num_tastes, size=len(user_E))]
        place_E = self._skewed(rng.random(len(user_E)), self._size_of(cluster_E), _SKEW)
        frame = pl.DataFrame(
            {
                "user": user_E + number * _PART_USERS,
                "item": cluster_E + place_E * self.num_clusters,
                "timestamp": _START_S + rng.integers(_SPAN_S, size=len(user_E)),
            }
        )
        return frame.sort("timestamp", maintain_order=True)

    def item_chances(self, items_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return each item's cluster, and its chance to be the item of an event of that cluster."""
        cluster_N = items_N % self.num_clusters
        place_N = items_N // self.num_clusters
        edges_2N = np.stack([place_N, place_N + 1]) / self._size_of(cluster_N)
        first_N, last_N = edges_2N ** (1 / _SKEW)
        return cluster_N, last_N - first_N

    def _size_of(self, cluster_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return clusters' sizes. Items of cluster c are c, c + C, c + 2C, …: each has popular first rows."""
        return (self.num_items - cluster_N - 1) // self.num_clusters + 1

    @staticmethod
    def _skewed(uniform: NDArray[np.float64], size: int | NDArray[np.int64], power: int) -> NDArray[np.int64]:
        """Turn uniform numbers into positions 0 to size - 1, the first ones more often."""
        return np.asarray((uniform**power * size).astype(np.int64))


def write_event_log(path: Path, space: EventSpace, num_events: int) -> int:
    """Write a parquet log of at least so many events, which appears whole; return their exact number."""
    written = number = 0
    with (
        replacing(path) as whole,
        TemporaryDirectory(dir=path.parent, prefix=".events-") as folder,
        progress(f"writing {path.name}", num_events) as bar,
    ):
        while written < num_events:
            users_left = max(1, (num_events - written) // _MEAN_EVENTS)
            frame = space.part(number, min(_PART_USERS, users_left))
            frame.write_parquet(Path(folder) / f"{number:06d}.parquet")
            written, number = written + len(frame), number + 1
            bar.advance(len(frame))
        pl.scan_parquet(Path(folder) / "*.parquet").sink_parquet(whole)
    return written
