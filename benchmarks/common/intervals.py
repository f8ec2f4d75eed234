"""Half of the 95 % confidence interval of a mean (Student's t), for every report."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

# 97.5 % points for 1, 2, … degrees of freedom.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def half_width(values: Sequence[float]) -> float | None:
    """Give the half-width; None for fewer than two values."""
    freedom = len(values) - 1
    if freedom < 1:
        return None
    # Beyond the table the point is the normal's and a term in 1/n, right to a thousandth.
    factor = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
    return factor * statistics.stdev(values) / math.sqrt(len(values))
