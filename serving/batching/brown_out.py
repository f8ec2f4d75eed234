"""Brown-out: before calls are turned away, usual searches look less hard, within a recall floor.

How much less is read off the manifest: each setting that was measured when the index was tuned says what
recall it gave. Every search parameter buys recall, so a setting that is no smaller than a measured one in any
of them finds at least as much. Requests that name their own effort, or filters, are left as they are.

Whether it is on has hysteresis: it begins when a newcomer would wait half of the time allowed, and ends when
waits have been short for a while. Knows no call and no index.
"""

from collections.abc import Callable
from time import monotonic
from typing import Final

from re4.bundle.manifest import IndexInfo

_ON_SHARE: Final = 0.5
_OFF_SHARE: Final = 0.1
"""Of the queueing time allowed."""
_CALM_S: Final = 1.0
"""Waits must have been short for so long before usual searches look as hard as usual again."""


def lowest_effort(info: IndexInfo, recall_floor: float) -> float | None:
    """The smallest multiple of the tuned setting whose recall is known to keep a floor; None for below 1.

    Args:
        info: What the manifest says about the index.
        recall_floor: Of the merged list, 0 to 1, as the index was tuned.
    """
    chosen = info.search_parameters
    efforts = [
        max(point.search_parameters[name] / value for name, value in chosen.items())
        for point in info.frontier
        if chosen and point.recall >= recall_floor and set(point.search_parameters) == set(chosen)
    ]
    lowest = min(efforts, default=1.0)
    return lowest if lowest < 1 else None


class BrownOut:
    """Whether searches look less hard at the moment. Belongs to one thread; others may read `is_on`."""

    def __init__(self, max_wait_ms: float, clock_s: Callable[[], float] = monotonic) -> None:
        """Begin with searches as usual.

        Args:
            max_wait_ms: Calls that would wait longer are turned away.
            clock_s: What time it is, in seconds since any moment.
        """
        self._on_ms = _ON_SHARE * max_wait_ms
        self._off_ms = _OFF_SHARE * max_wait_ms
        self._clock_s = clock_s
        self._calm_since_s: float | None = None
        self.is_on = False

    def observe(self, wait_ms: float) -> None:
        """Take in how long a newcomer would wait."""
        if wait_ms >= self._on_ms:
            self.is_on, self._calm_since_s = True, None
        elif wait_ms > self._off_ms:
            self._calm_since_s = None
        elif self.is_on:
            now_s = self._clock_s()
            if self._calm_since_s is None:
                self._calm_since_s = now_s
            elif now_s - self._calm_since_s >= _CALM_S:
                self.is_on, self._calm_since_s = False, None
