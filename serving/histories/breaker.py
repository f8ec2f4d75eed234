"""A circuit breaker: while a store fails, calls fail at once, and few of them try it again."""

from collections.abc import Callable
from time import monotonic

from re4.common.errors import HistoryStoreError
from re4.serving.host.backoff import Backoff


class CircuitBreaker:
    """Belongs to one process; threads may share it."""

    def __init__(self, clock_s: Callable[[], float] = monotonic) -> None:
        """Start closed: calls pass.

        Args:
            clock_s: Seconds since any moment.
        """
        self._backoff = Backoff(first_delay_s=0.2, longest_delay_s=5.0)
        self._clock_s = clock_s
        self._retry_at_s = 0.0
        self.failure = ""
        """Why the last try failed; empty where it succeeded."""

    def check(self) -> None:
        """Raise if the store has just failed and is not due to be tried again.

        Raises:
            HistoryStoreError: the failure of the last try.
        """
        if self.failure and self._clock_s() < self._retry_at_s:
            raise HistoryStoreError(self.failure)

    def succeeded(self) -> None:
        """Note that the store answered."""
        if self.failure:
            self.failure = ""
            self._backoff.reset()

    def failed(self, error: HistoryStoreError) -> None:
        """Note that the store did not answer."""
        self.failure = str(error)
        self._retry_at_s = self._clock_s() + self._backoff.delay_s()
