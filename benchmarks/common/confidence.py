"""95 % confidence intervals of a mean (Student's t)."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

# 97.5 % points for 1, 2, … degrees of freedom.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the interval; None for fewer than two values."""
    freedom = len(values) - 1
    if freedom < 1:
        return None
    # Beyond the table the point is the normal's and a term in 1/n, right to a thousandth.
    factor = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
    return factor * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Return `mean`, `low` and `high` of a figure that cannot be negative, one value for each run.

    `low` and `high` are None after a single run. The result is None where any run lacks the figure (a
    percentile among failed calls): a mean over the other runs would be too good.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean, half = statistics.fmean(known), half_width(known)
    if half is None:
        return {"mean": mean, "low": None, "high": None}
    return {"mean": mean, "low": max(0.0, mean - half), "high": mean + half}
