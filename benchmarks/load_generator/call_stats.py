"""Statistics of the calls of a run. Failed calls count as slower than any answer.

A percentile is that of all calls that were due; there is none where it falls among the failed ones. So a
server cannot look faster by rejecting calls.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from re4.benchmarks.load_generator.transport import STAGES, ParsedReply

SHED: Final = "RESOURCE_EXHAUSTED"
ELSEWHERE: Final = "elsewhere"
"""The part of a call's time that is in no stage: network, gRPC on both sides, waiting to be sent."""
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


@dataclass(kw_only=True, eq=False)
class CallStats:
    """Calls whose intended time fell into the counted part of a run."""

    answered_us: Histogram = field(default_factory=Histogram)
    """From the intended time to the answer, of answered calls."""
    lag_us: Histogram = field(default_factory=Histogram)
    """From the intended to the actual send time, of all calls: the client's own lateness."""
    stages_us: dict[str, Histogram] = field(
        default_factory=lambda: {stage: Histogram() for stage in (*STAGES, ELSEWHERE)}
    )
    """The server's stage times, from the replies."""
    batch_size: Histogram = field(default_factory=Histogram)
    failures: Counter[str] = field(default_factory=Counter)
    """Failed calls by gRPC status code."""
    failure_details: dict[str, str] = field(default_factory=dict)
    """One message of the server for each code."""
    versions: Counter[str] = field(default_factory=Counter)
    """Answers by bundle version, those of the warm-up too."""
    num_warmup: int = 0
    """Calls that were sent in the warm-up."""
    counted_s: float = 0.0
    """Seconds of sending that count."""
    seconds: float = 0.0
    """From the start of counting to its end, or to the last answer where that is later."""
    stopped: str | None = None
    """Why the run ended early; None where it did not."""

    @property
    def num_calls(self) -> int:
        """Calls that count."""
        return self.answered_us.count + self.failures.total()

    @property
    def offered_per_s(self) -> float | None:
        """Calls per second that were due; None where nothing was counted."""
        return self.num_calls / self.counted_s if self.counted_s else None

    @property
    def achieved_per_s(self) -> float:
        """Answers per second, failed calls left out."""
        return self.answered_us.count / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: float) -> float | None:
        """Return a percentile over all calls that count; None where it falls among the failed ones."""
        if not self.num_calls:
            return None
        rank = nearest_rank(percent, self.num_calls)
        return self.answered_us.at_rank(rank) / 1000 if rank <= self.answered_us.count else None

    def add(self, other: "CallStats", combine_s: Callable[[float, float], float]) -> None:
        """Add calls; seconds combine by `max` for the same time span, by `operator.add` for another one."""
        self.counted_s = combine_s(self.counted_s, other.counted_s)
        self.seconds = combine_s(self.seconds, other.seconds)
        self.answered_us.add(other.answered_us)
        self.lag_us.add(other.lag_us)
        for stage, histogram in self.stages_us.items():
            histogram.add(other.stages_us[stage])
        self.batch_size.add(other.batch_size)
        self.failures.update(other.failures)
        self.failure_details = other.failure_details | self.failure_details
        self.versions.update(other.versions)
        self.num_warmup += other.num_warmup
        self.stopped = self.stopped or other.stopped


class Recorder:
    """Records one worker's calls while they happen, as cheaply as it can."""

    def __init__(self, *, count_from: float) -> None:
        """Start empty; calls intended before `count_from` (`time.monotonic` seconds) are the warm-up's."""
        self._count_from = count_from
        self._last_end = count_from
        self._answered_us, self._lag_us, self._batch_size = array("q"), array("q"), array("q")
        self._stages_us = array("q")
        """Stage times of one answer after those of the other."""
        self._failures: Counter[str] = Counter()
        self._details: dict[str, str] = {}
        self._versions: Counter[str] = Counter()
        self._num_warmup = 0
        self.num_answered = 0
        self.num_failed = 0

    def answered(self, intended: float, sent: float, end: float, reply: ParsedReply) -> None:
        """Record an answer; times are `time.monotonic` seconds."""
        self.num_answered += 1
        self._versions[reply.version] += 1
        if self._counts(intended, sent, end):
            self._answered_us.append(round((end - intended) * 1e6))
            if reply.batch_size is not None:
                self._batch_size.append(reply.batch_size)
            if reply.stages_us is not None:
                self._stages_us.extend(reply.stages_us)

    def failed(self, intended: float, sent: float, end: float, code: str, details: str) -> None:
        """Record a failed call; times are `time.monotonic` seconds."""
        self.num_failed += 1
        self._details.setdefault(code, details)
        if self._counts(intended, sent, end):
            self._failures[code] += 1

    def _counts(self, intended: float, sent: float, end: float) -> bool:
        if intended < self._count_from:
            self._num_warmup += 1
            return False
        self._lag_us.append(round((sent - intended) * 1e6))
        self._last_end = max(self._last_end, end)
        return True

    def stats(self, *, counted_s: float, stopped: str | None) -> CallStats:
        """Return the statistics of a run with so many seconds of sending that count."""
        answered_us, lag_us, batch_size, stages_us = (
            np.frombuffer(column, np.int64)
            for column in (self._answered_us, self._lag_us, self._batch_size, self._stages_us)
        )
        stages_us = stages_us.reshape(-1, len(STAGES))
        histograms = {stage: Histogram.of(stages_us[:, place]) for place, stage in enumerate(STAGES)}
        if len(stages_us) == len(answered_us):
            histograms[ELSEWHERE] = Histogram.of(answered_us - stages_us.sum(axis=1))
        return CallStats(
            answered_us=Histogram.of(answered_us),
            lag_us=Histogram.of(lag_us),
            stages_us={ELSEWHERE: Histogram()} | histograms,
            batch_size=Histogram.of(batch_size),
            failures=self._failures,
            failure_details=self._details,
            versions=self._versions,
            num_warmup=self._num_warmup,
            counted_s=counted_s,
            seconds=max(counted_s, self._last_end - self._count_from),
            stopped=stopped,
        )
