"""Refusals are kept to a bounded share of the time, so that far beyond saturation the answers go on.

To gRPC in Python a refused call costs a good part of what an answered one does. A loop that takes and
refuses all that come leaves a compute lane half of the time, and less the more come. So refusals beside a
lane at work are spaced: a loop that has just refused a call blocks for a moment before it refuses the next.
On purpose: nothing else gives the core away, and replies wait for no longer than that. Meanwhile calls
gather in the queue of gRPC's core, which is kept short: what does not fit in it is ended there, for a
fraction of the cost, with CANCELLED. Where the loop itself runs the batches, `batcher.py` has its own
bound.

Knows nothing about calls.
"""

from collections.abc import Callable
from time import perf_counter, sleep
from typing import Final

SPACING_S: Final = 0.01
"""Between two refusals: about fifty times what one costs, so a fiftieth of the time goes into them."""

QUEUE_OPTIONS: Final = (
    ("grpc.server.max_pending_requests", 256),
    ("grpc.server.max_pending_requests_hard_limit", 512),
    ("grpc.server_max_unrequested_time_in_server", 1),
)
"""Calls of one method that gRPC's core may hold until they are taken: from the first number on it ends some,
beyond the second all, and those that have waited a second. Enough for a burst that an idle server reads at
once. Each method has a queue of its own: those of the health service and of Info stay empty."""


class Spacing:
    """Keeps what it is called for apart. Belongs to one thread."""

    def __init__(
        self, clock_s: Callable[[], float] = perf_counter, block_s: Callable[[float], None] = sleep
    ) -> None:
        """Start with nothing before.

        Args:
            clock_s: What time it is, in seconds since any moment.
            block_s: Holds this thread up for so many seconds.
        """
        self._clock_s = clock_s
        self._block_s = block_s
        self._next_s = 0.0

    def keep(self) -> None:
        """Hold this thread up until `SPACING_S` after the last time; at most for that long."""
        wait_s = min(self._next_s - self._clock_s(), SPACING_S)
        if wait_s > 0:
            self._block_s(wait_s)
        self._next_s = self._clock_s() + SPACING_S
