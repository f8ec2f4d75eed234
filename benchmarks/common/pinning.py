"""Pinning of processes to CPU cores: a server on one, its client on another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from re4.common.errors import UsageError


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this thread, and every process that it starts in the block, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cores() -> tuple[int, int]:
    """Return a core for the server and another one for the client."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UsageError("this needs two cores, one for the server and one for its client")
    return cores[0], cores[-1]
