"""The deadline of the running batch, for searches on another machine.

The batcher sets it in the thread that runs the batch. It is the latest deadline of the batch's requests:
until then one of the callers waits.
"""

from contextvars import ContextVar
from math import inf
from time import perf_counter_ns
from typing import Final

DEADLINE_NS: Final[ContextVar[float]] = ContextVar("batch_deadline_ns", default=inf)
"""By `perf_counter_ns`; infinite for none."""


def batch_time_left_s() -> float:
    """Return the seconds until the deadline of the running batch; infinite for none."""
    return (DEADLINE_NS.get() - perf_counter_ns()) / 1e9
