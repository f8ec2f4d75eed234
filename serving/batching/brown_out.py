"""Brown-out: before calls are rejected, default searches run at a lower search effort.

A recall floor limits the effort. The manifest states the recall of each setting that was measured
when the index was tuned. Every search parameter raises recall. So a setting with no parameter
smaller than in a measured one finds at least as much. Requests with filters or with an effort of
their own are not changed.

The state has hysteresis: it begins when a new call would wait half of the allowed time, and ends
when waits have been short for a second.
"""

from collections.abc import Callable
from time import monotonic
from typing import Final

from re4.bundle.manifest import IndexInfo
from re4.common.shared_list_search import REACH_DROP, REACH_DROP_EXPONENT

_ON_SHARE: Final = 0.5
_OFF_SHARE: Final = 0.1
"""Of the allowed waiting time."""
_CALM_S: Final = 1.0
"""How long waits must have been short before the brown-out ends."""


def lowest_effort(info: IndexInfo, recall_floor: float) -> float | None:
    """Return the lowest effort that keeps a recall floor; None where it is not below 1.

    Args:
        info: The index as the manifest describes it.
        recall_floor: Of the merged list, 0 to 1, as the index was tuned.
    """
    # Default searches read no list with `nprobe` where interests share a budget.
    unused = {"nprobe"} if "shared_nprobe" in info.search_parameters else set()
    chosen = {name: value for name, value in info.search_parameters.items() if name not in unused}
    efforts = [
        max(
            (point.search_parameters[name] / value) ** (1 / REACH_DROP_EXPONENT if name == REACH_DROP else 1)
            for name, value in chosen.items()
        )
        for point in info.frontier
        if chosen and point.recall >= recall_floor and set(point.search_parameters) == set(chosen)
    ]
    lowest = min(efforts, default=1.0)
    return lowest if lowest < 1 else None


class BrownOut:
    """Whether default searches run at a lower effort now, and at which. Belongs to one thread."""

    def __init__(
        self, max_wait_ms: float, recall_floor: float | None, clock_s: Callable[[], float] = monotonic
    ) -> None:
        """Start with the tuned effort.

        Args:
            max_wait_ms: Calls that would wait longer are rejected.
            recall_floor: As for `lowest_effort`; None for no brown-out.
            clock_s: Returns the time in seconds since any moment.
        """
        self._on_ms = _ON_SHARE * max_wait_ms
        self._off_ms = _OFF_SHARE * max_wait_ms
        self._recall_floor = recall_floor
        self._clock_s = clock_s
        self._calm_since_s: float | None = None
        self._is_on = False
        # The last index and its effort. The index's description only: a whole version would keep
        # its files mapped.
        self._last: tuple[IndexInfo | None, float | None] = None, None

    @property
    def is_on(self) -> bool:
        """Whether there is a brown-out now."""
        return self._is_on and self._recall_floor is not None

    def observe(self, wait_ms: float) -> None:
        """Update the state by the time that a new call would wait."""
        if wait_ms >= self._on_ms:
            self._is_on, self._calm_since_s = True, None
        elif wait_ms > self._off_ms:
            self._calm_since_s = None
        elif self._is_on:
            now_s = self._clock_s()
            if self._calm_since_s is None:
                self._calm_since_s = now_s
            elif now_s - self._calm_since_s >= _CALM_S:
                self._is_on, self._calm_since_s = False, None

    def effort(self, info: IndexInfo) -> float | None:
        """Return the effort of default searches now; None for the tuned one."""
        if not self._is_on or self._recall_floor is None:
            return None
        if self._last[0] is not info:
            self._last = info, lowest_effort(info, self._recall_floor)
        return self._last[1]
