"""How far a long stage is, and how long it still takes: a note beside the bar."""

from collections.abc import Callable
from time import monotonic
from typing import Final, TypeAlias

Note: TypeAlias = Callable[[str], None]
"""Takes the newest state of the work, for people."""

_SECONDS_BETWEEN: Final = 2.0


class TimeLeft:
    """Tells a note about steps that take about equally long each."""

    def __init__(self, note: Note, stage: str, total: int, *, done: int = 0) -> None:
        """Begin now.

        Args:
            note: Who is told.
            stage: What is under way.
            total: How many steps there are.
            done: How many of them were finished before.
        """
        self._note, self._stage, self._total = note, stage, total
        self._began, self._first = monotonic(), done
        self._told = self._began

    def at(self, done: int) -> None:
        """So many steps are finished. Told at most every two seconds."""
        now = monotonic()
        if now - self._told < _SECONDS_BETWEEN or done <= self._first:
            return
        self._told = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        self._note(f"{self._stage}: {done / self._total:.0%}, {in_words(left)} left")


def in_words(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def unnoted(text: str) -> None:
    """A note that nobody reads."""
