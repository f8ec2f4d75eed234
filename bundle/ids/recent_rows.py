"""Ids that were looked up lately, in front of a look-up: a few items make up most of all histories.

A bounded number of them, whatever the catalogue's size, so that every process can have its own.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAX_KEPT: Final = 32_768
"""Ids, twice: the newest, and those before them."""

_MAX_AT_ONCE: Final = 4_096
"""Who asks for more has bulk work to do, which would drive out what callers ask for."""


class RecentRows:
    """Rows of ids: of recent ones from memory. Safe to share between threads."""

    def __init__(self, look_up: Callable[[Sequence[str]], NDArray[np.int64]]) -> None:
        """Remember nothing yet.

        Args:
            look_up: From ids to rows, -1 where unknown.
        """
        self._look_up = look_up
        self._newest: dict[str, int] = {}
        self._earlier: dict[str, int] = {}

    def __call__(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of ids, -1 where unknown: int64 [number of ids]."""
        if len(ids) > _MAX_AT_ONCE:
            return self._look_up(ids)
        rows = list(map(self._newest.get, ids))
        if None in rows:
            self._fill(rows, ids)
        return np.array(rows, np.int64)

    def _fill(self, rows: list[int | None], ids: Sequence[str]) -> None:
        """Put rows where they are missing, and their ids among the newest."""
        earlier = self._earlier
        missing = [place for place, row in enumerate(rows) if row is None]
        unseen = [place for place in missing if ids[place] not in earlier]
        found = dict(zip(unseen, self._look_up([ids[place] for place in unseen]).tolist(), strict=True))
        for place in missing:
            rows[place] = found[place] if place in found else earlier[ids[place]]
        if len(self._newest) + len(missing) > _MAX_KEPT:
            self._earlier, self._newest = self._newest, {}
        # There is no end of unknown ids: they are not kept.
        self._newest.update(
            (ids[place], row) for place in missing if (row := rows[place]) is not None and row >= 0
        )
