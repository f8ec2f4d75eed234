"""Exponential backoff: how long to wait before the next attempt. Reads no clock."""

from typing import Final

_HEALTHY_AFTER_S: Final = 60.0
"""After a run of this length, earlier failures no longer count."""


class Backoff:
    """Delays between attempts: none before the first retry, then doubled up to a limit."""

    def __init__(self, *, first_delay_s: float = 0.5, longest_delay_s: float = 30.0) -> None:
        self._first_delay_s = first_delay_s
        self._longest_delay_s = longest_delay_s
        self._next_delay_s = 0.0

    def reset(self) -> None:
        """Forget earlier failures."""
        self._next_delay_s = 0.0

    def delay_s(self, uptime_s: float = 0.0) -> float:
        """Return the seconds to wait now.

        Args:
            uptime_s: How long the last attempt ran before it failed; 0 where it did not start.
        """
        if uptime_s >= _HEALTHY_AFTER_S:
            self.reset()
        delay_s = self._next_delay_s
        self._next_delay_s = min(max(2 * delay_s, self._first_delay_s), self._longest_delay_s)
        return delay_s
