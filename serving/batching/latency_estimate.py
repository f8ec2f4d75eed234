"""Who is let in: what waiting costs, as measured.

The bound is on time, not on a number of calls: a queue that drains in time is no overload, however long.
An idle server lets everyone in, whatever was measured before, so that one slow batch cannot shut a server
for good. Knows nothing about what a query is, or how batches are formed.
"""

from collections.abc import Hashable
from typing import Final

_NEWEST_SHARE: Final = 0.2
"""Weight of the newest batch in the moving average: a change of pace is seen within some ten batches."""


class Pace:
    """How long one query takes when it shares a batch, by class of cost: a moving average."""

    def __init__(self) -> None:
        self._ms: dict[Hashable, float] = {}

    def note(self, cost_class: Hashable, num_queries: int, took_ms: float) -> None:
        """Take in a batch of queries of one class that took so many milliseconds."""
        newest = took_ms / num_queries
        before = self._ms.get(cost_class, newest)
        self._ms[cost_class] = before + _NEWEST_SHARE * (newest - before)

    def ms(self, cost_class: Hashable) -> float:
        """Expected milliseconds for each query of this class; 0 where none was seen yet."""
        return self._ms.get(cost_class, 0.0)
