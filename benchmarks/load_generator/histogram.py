"""HDR histograms of whole microseconds: exact to 0.1 %, of constant size, can be sent and added up."""

from typing import Any, Final, Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

MAX_US: Final = 3_600_000_000
"""One hour; longer times count as this."""
_NUM_DIGITS: Final = 3


class Histogram:
    """Values from 0 to an hour in microseconds. Also holds plain counts, such as batch sizes."""

    def __init__(self, encoded: bytes | None = None) -> None:
        """Start empty, or from an encoded histogram."""
        self._counts: Any = HdrHistogram(1, MAX_US, _NUM_DIGITS)
        if encoded:
            self._counts.decode_and_add(encoded)

    @classmethod
    def of(cls, values: NDArray[np.int64]) -> Self:
        """Return the histogram of these values."""
        made = cls()
        clipped = np.clip(values, 0, MAX_US)
        for value, count in zip(*np.unique(clipped, return_counts=True), strict=True):
            made._counts.record_value(int(value), int(count))
        return made

    def __reduce__(self) -> tuple[type["Histogram"], tuple[bytes | None]]:
        return Histogram, (self._counts.encode() if self.count else None,)

    def add(self, other: "Histogram") -> None:
        """Add the values of another histogram."""
        if other.count:
            self._counts.add(other._counts)

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self._counts.total_count)

    @property
    def mean(self) -> float | None:
        """Mean; None where it is empty."""
        return float(self._counts.get_mean_value()) if self.count else None

    @property
    def max(self) -> int | None:
        """Largest value; None where it is empty."""
        return int(self._counts.get_max_value()) if self.count else None

    @property
    def max_ms(self) -> float | None:
        """Largest value in milliseconds; None where it is empty."""
        return None if self.max is None else self.max / 1000

    def at_rank(self, rank: int) -> int:
        """Return the value of a rank, 1 to `count`, in ascending order."""
        if not 1 <= rank <= self.count:
            raise ValueError(f"rank {rank} of {self.count} values")
        return int(self._counts.get_value_at_percentile(100 * rank / self.count))

    def percentile_ms(self, percent: float) -> float | None:
        """Return a percentile in milliseconds; None where it is empty."""
        return None if (found := self.percentile(percent)) is None else found / 1000

    def percentile(self, percent: float) -> int | None:
        """Return the nearest-rank percentile; None where it is empty."""
        return self.at_rank(nearest_rank(percent, self.count)) if self.count else None


def nearest_rank(percent: float, count: int) -> int:
    """Return the rank, 1 to `count`, of a percentile by the nearest-rank rule."""
    # A rounding error must not lift 99 % of 100 values to rank 100.
    return min(max(int(np.ceil(round(percent / 100 * count, 6))), 1), count)
