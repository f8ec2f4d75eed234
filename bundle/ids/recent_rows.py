"""A cache of recent look-ups of ids: a few items make up most of all histories.

Its size is bounded independently of the catalogue, so every process can have a cache of its own.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAX_IDS: Final = 32_768
"""Ids of each of the two generations."""

_MAX_CACHED_CALL: Final = 4_096
"""A look-up of more ids is bulk work; it would replace the ids of usual requests in the cache."""


class RecentRows:
    """Rows of ids, with a cache. Threads can share it."""

    def __init__(self, look_up: Callable[[Sequence[str]], NDArray[np.int64]]) -> None:
        """Make an empty cache.

        Args:
            look_up: Maps ids to rows, -1 where unknown.
        """
        self._look_up = look_up
        self._newest: dict[str, int] = {}
        self._earlier: dict[str, int] = {}

    def __call__(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids, -1 where unknown: int64 [number of ids]."""
        if len(ids) > _MAX_CACHED_CALL:
            return self._look_up(ids)
        rows = list(map(self._newest.get, ids))
        if None in rows:
            self._fill(rows, ids)
        return np.array(rows, np.int64)

    def _fill(self, rows: list[int | None], ids: Sequence[str]) -> None:
        """Fill in the missing rows, and add their ids to the newest generation."""
        earlier = self._earlier
        missing = [place for place, row in enumerate(rows) if row is None]
        unseen = [place for place in missing if ids[place] not in earlier]
        found = dict(zip(unseen, self._look_up([ids[place] for place in unseen]).tolist(), strict=True))
        for place in missing:
            rows[place] = found[place] if place in found else earlier[ids[place]]
        if len(self._newest) + len(missing) > _MAX_IDS:
            self._earlier, self._newest = self._newest, {}
        # Unknown ids are not cached: their number is unbounded.
        self._newest.update(
            (ids[place], row) for place in missing if (row := rows[place]) is not None and row >= 0
        )
