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


class RejectionQuota:
    """How many calls may be rejected now, where each rejection is cheap but there may be far too many.

    The calls beyond the quota are rejected later. Meanwhile each of them occupies one of the concurrent
    calls of its connection, so that the client keeps further calls back.
    """

    per_s = 2_000.0
    """At some 25 µs of CPU time each: a twentieth of a core."""
    burst = 256.0

    def __init__(self, clock_s: Callable[[], float] = perf_counter) -> None:
        """Start with a full quota."""
        self._clock_s = clock_s
        self._left = self.burst
        self._since_s = clock_s()

    def take(self, num_calls: int) -> int:
        """Use up the quota for at most so many calls, and return for how many."""
        now_s = self._clock_s()
        self._left = min(self.burst, self._left + max(0.0, now_s - self._since_s) * self.per_s)
        self._since_s = now_s
        taken = min(num_calls, int(self._left))
        self._left -= taken
        return taken


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
