"""Mean and 95 % confidence interval of a figure over repeated runs (Student's t)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from re4.benchmarks.common.intervals import half_width


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure over runs. `low` and `high` are None where there was one run."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float | None]) -> Interval | None:
    """The interval of a figure that cannot be negative.

    Args:
        values: One for each run; None where it has no such figure: a percentile among failed calls.

    Returns:
        None where any run has none: a mean over the others would be too good.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean = statistics.fmean(known)
    half = half_width(known)
    if half is None:
        return Interval(mean=mean, low=None, high=None)
    return Interval(mean=mean, low=max(0.0, mean - half), high=mean + half)
