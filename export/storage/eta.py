"""Progress of a long stage, with the time left, for the text beside a progress bar."""

from collections.abc import Callable
from time import monotonic
from typing import Final, TypeAlias

OnProgress: TypeAlias = Callable[[str], None]
"""Takes the newest state of the work, as text."""

_SECONDS_BETWEEN: Final = 2.0


class EtaReporter:
    """Reports the time left of a stage whose steps take about equally long."""

    def __init__(self, on_progress: OnProgress, stage: str, total: int, *, done: int = 0) -> None:
        """Start the clock.

        Args:
            on_progress: Called with the state.
            stage: Name of the work.
            total: Number of steps.
            done: Steps that were finished before.
        """
        self._on_progress, self._stage, self._total = on_progress, stage, total
        self._began, self._first = monotonic(), done
        self._reported = self._began

    def at(self, done: int) -> None:
        """Take the number of finished steps; report at most every two seconds."""
        now = monotonic()
        if now - self._reported < _SECONDS_BETWEEN or done <= self._first:
            return
        self._reported = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        self._on_progress(f"{self._stage}: {done / self._total:.0%}, {format_duration(left)} left")


def format_duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def no_progress(text: str) -> None:
    """Ignore the progress."""
