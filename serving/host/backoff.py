"""How long to wait before something that died is started again. Knows no clock and no process."""

from typing import Final

_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
_WELL_AFTER_S: Final = 60.0
"""What lived so long had nothing to do with what went wrong before."""


class Backoff:
    """The first death is answered at once; deaths that follow each other quickly, ever more slowly."""

    def __init__(self) -> None:
        self._next_delay_s = 0.0

    def delay_s(self, lived_s: float) -> float:
        """Seconds to wait now.

        Args:
            lived_s: How long it lived this time, in seconds; 0 where it did not even start.
        """
        if lived_s >= _WELL_AFTER_S:
            self._next_delay_s = 0.0
        delay_s = self._next_delay_s
        self._next_delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
        return delay_s
