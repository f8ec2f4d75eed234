"""Pacing of rejections, so that answers continue far beyond saturation.

To gRPC in Python a rejected call costs a good part of an answered one. An event loop that accepts
and rejects all arriving calls leaves only half of the time for the worker thread, and less as more
calls arrive. So while a batch runs, the event loop blocks for a moment between two rejections.
Blocking is intended: nothing else yields the core, and replies wait for no longer than that.
Meanwhile calls gather in the queue of gRPC's core, which is short. Calls that do not fit in it end
there, at a fraction of the cost, with CANCELLED. Where the event loop itself runs the batches,
`batcher.py` has its own bound.
"""

from collections.abc import Callable
from time import perf_counter, sleep
from typing import Final

SPACING_S: Final = 0.01
"""Between two rejections: about fifty times the cost of one, so rejections take a fiftieth of the
time."""


SINGLE_PER_S: Final = 200.0
SINGLE_BURST: Final = 256.0
"""Rejections that are logged, traced and counted one by one, at some 25 µs of CPU time each."""
EARLY_PER_S: Final = 20_000.0
EARLY_BURST: Final = 4_000.0
"""Further ones that are sent at once, at some 7 µs each. Those beyond them are held back: meanwhile each
occupies one of the concurrent calls of its connection, so that the client keeps further calls back."""


class RejectionQuota:
    """How many calls may be rejected now."""

    def __init__(self, *, per_s: float, burst: float, clock_s: Callable[[], float] = perf_counter) -> None:
        """Start with a full quota.

        Args:
            per_s: Rejections a second, in the long run.
            burst: Most of them at once.
            clock_s: Returns the time in seconds since any moment.
        """
        self._per_s = per_s
        self._burst = burst
        self._clock_s = clock_s
        self._left = burst
        self._since_s = clock_s()

    def available(self) -> int:
        """Return for how many calls the quota is enough."""
        now_s = self._clock_s()
        self._left = min(self._burst, self._left + max(0.0, now_s - self._since_s) * self._per_s)
        self._since_s = now_s
        return int(self._left)

    def take(self, num_calls: int) -> None:
        """Use up the quota for so many calls, or all of it."""
        self._left -= min(num_calls, self.available())


class RejectionPacer:
    """Keeps rejections apart in time. Belongs to one thread."""

    def __init__(
        self, clock_s: Callable[[], float] = perf_counter, block_s: Callable[[float], None] = sleep
    ) -> None:
        """Start without a rejection before.

        Args:
            clock_s: Returns the time in seconds since any moment.
            block_s: Blocks this thread for so many seconds.
        """
        self._clock_s = clock_s
        self._block_s = block_s
        self._next_s = 0.0

    def pace(self) -> None:
        """Block this thread until `SPACING_S` after the last rejection; at most for that long."""
        wait_s = min(self._next_s - self._clock_s(), SPACING_S)
        if wait_s > 0:
            self._block_s(wait_s)
        self._next_s = self._clock_s() + SPACING_S
