"""The time limit for the messages of calls, by one timer for all."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

NO_MESSAGE: Final = "the call ended without a message; send one, which may be empty"

WaiterT = TypeVar("WaiterT", bound=Hashable)


class MessageDeadlines(Generic[WaiterT]):
    """Ends what waits too long for a message. Belongs to one event loop."""

    def __init__(self, timeout_s: float, on_late: Callable[[WaiterT], None]) -> None:
        """Start without a waiter.

        Args:
            timeout_s: Time limit of each waiter.
            on_late: Called with a waiter whose time has passed.
        """
        self._timeout_s = timeout_s
        self._on_late = on_late
        self.late_details: Final = (
            f"no complete message came within {timeout_s:g} s of the call's start (message_timeout_s)"
        )
        # In order of arrival, thus of deadlines: one timer is enough for all.
        self._deadlines_s: dict[WaiterT, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """How many wait for a message."""
        return len(self._deadlines_s)

    def add(self, waiter: WaiterT) -> None:
        """Begin the time of a waiter."""
        loop = asyncio.get_running_loop()
        self._deadlines_s[waiter] = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._end_late)

    def discard(self, waiter: WaiterT) -> None:
        """End the time of a waiter: its message came, or it left."""
        self._deadlines_s.pop(waiter, None)

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_late(self) -> None:
        """End the waiters that are late, and wait for the next deadline."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for waiter, deadline_s in list(self._deadlines_s.items()):
            if deadline_s > loop.time():
                self._timer = loop.call_at(deadline_s, self._end_late)
                return
            self._on_late(waiter)
