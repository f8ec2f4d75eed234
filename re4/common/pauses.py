"""Pauses of a thread that computes in Python beside threads that answer."""

from collections.abc import Iterable, Iterator
from time import sleep
from typing import Final, TypeVar

_PAUSE_S: Final = 2e-5
_T = TypeVar("_T")


def with_pauses(values: Iterable[_T], chunk: int) -> Iterator[_T]:
    """Yield values, with a pause after each chunk, in which other threads get Python's lock.

    A thread that computes in Python keeps the lock for up to 5 ms while others wait for it: answers would be
    late by as much. To release the lock without a pause is not enough, because the thread would take it again
    before the others are awake.
    """
    for place, value in enumerate(values):
        if place and place % chunk == 0:
            sleep(_PAUSE_S)
        yield value
