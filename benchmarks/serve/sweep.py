"""The knee: the highest rate at which a server still meets a latency objective.

Doubles the rate until the objective is missed, halves the gap (geometrically) a few times, and measures the
best rate in full. Where those runs miss the objective after all, it steps down and measures again. While it
searches, a rate has missed where two tries in a row do: a moment's pause of the machine spoils a short run.
"""

from dataclasses import dataclass
from typing import Final

from re4.benchmarks.load_generator.load import Arrivals, OpenLoad
from re4.benchmarks.serve.measure import Bench, Point

_MAX_DOUBLINGS: Final = 16
_NUM_HALVINGS: Final = 3
"""After a doubling, three leave a gap of 2^(1/8): 9 %."""
_STEP_DOWN: Final = 0.85
_MAX_STEPS_DOWN: Final = 6


@dataclass(frozen=True, kw_only=True)
class Knee:
    """Where a sweep ended."""

    point: Point | None
    """The highest rate measured in full that meets the objective; None where no rate did."""
    reason: str
    """Why there is no higher one."""
    is_client_limited: bool
    """It was the client that could do no more: the server's own knee is at least as high."""


def find_knee(
    bench: Bench, *, first_rate_per_s: float, arrivals: Arrivals, p99_ms: float, num_runs: int
) -> Knee:
    """Find the knee.

    Args:
        bench: Where to measure.
        first_rate_per_s: A rate that the server surely bears.
        arrivals: How calls arrive.
        p99_ms: The objective: the 99th percentile of all calls, failed ones counting as slower than any.
        num_runs: Runs at the knee, and at each rate that could be it.

    Raises:
        StoppedError: measuring ended early.
    """
    # Why no higher rate was taken, and whether that is the client's fault.
    ceiling = (f"the client cannot offer more than {bench.max_rate_per_s:,.0f}/s", True)

    def measure(rate_per_s: float, *, in_full: bool) -> tuple[Point, tuple[str, bool] | None]:
        """A rate's point, and what speaks against it."""
        point = bench.measure(
            OpenLoad(rate_per_s=rate_per_s, arrivals=arrivals),
            num_runs=num_runs if in_full else 1,
            purpose="measured" if in_full else "search",
        )
        if point.limit:
            return point, (f"at {point.load.label}, {point.limit}", True)
        found_ms = point.pooled.percentile_ms(99)
        if found_ms is None or found_ms > p99_ms:
            return point, (f"higher rates miss a 99th percentile of {p99_ms:g} ms", False)
        return point, None

    def search(rate_per_s: float) -> tuple[str, bool] | None:
        _, problem = measure(rate_per_s, in_full=False)
        return problem and measure(rate_per_s, in_full=False)[1]

    best, missed, why = 0.0, None, ceiling
    rate = min(first_rate_per_s, bench.max_rate_per_s)
    for _ in range(_MAX_DOUBLINGS):
        if problem := search(rate):
            missed, why = rate, problem
            break
        best = rate
        if rate >= bench.max_rate_per_s:
            break
        rate = min(2 * rate, bench.max_rate_per_s)
    for _ in range(_NUM_HALVINGS if best and missed else 0):
        assert missed is not None
        middle = (best * missed) ** 0.5
        if problem := search(middle):
            missed, why = middle, problem
        else:
            best = middle
    rate = best or rate * _STEP_DOWN
    for _ in range(_MAX_STEPS_DOWN):
        point, problem = measure(rate, in_full=True)
        if problem is None:
            return Knee(point=point, reason=why[0], is_client_limited=why[1])
        rate, why = rate * _STEP_DOWN, problem
    reason = f"no rate down to {rate / _STEP_DOWN:,.1f}/s will do: {why[0]}"
    return Knee(point=None, reason=reason, is_client_limited=why[1])
