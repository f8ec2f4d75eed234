"""The knee: the highest rate at which a server still meets a latency objective.

The rate is doubled until the objective is missed, the gap is halved (geometrically) a few times, and the best
rate is measured in full. Where those runs miss the objective, a lower rate is measured. During the search a
rate has missed where two tries in a row do, because a moment's pause of the machine spoils a short run.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from re4.benchmarks.load_generator.load import OpenLoad
from re4.benchmarks.serve.runner import LoadPoint, LoadRunner

_MAX_DOUBLINGS: Final = 16
_NUM_HALVINGS: Final = 3
"""After a doubling, three leave a gap of 2^(1/8): 9 %."""
_STEP_DOWN: Final = 0.85
_MAX_STEPS_DOWN: Final = 6


@dataclass(frozen=True, kw_only=True)
class Knee:
    """Where a sweep ended."""

    point: LoadPoint | None
    """The highest rate measured in full that meets the objective; None where no rate did."""
    reason: str
    """Why there is no higher one."""
    is_client_limited: bool
    """The client could offer no more: the server's own knee is at least as high."""

    def facts(self) -> dict[str, Any]:
        """Return it as plain values."""
        load = self.point.load if self.point else None
        return {
            "rate_per_s": load.rate_per_s if isinstance(load, OpenLoad) else None,
            "reason": self.reason,
            "is_client_limited": self.is_client_limited,
        }


def find_knee(runner: LoadRunner, first: OpenLoad, *, p99_ms: float, num_runs: int) -> Knee:
    """Find the knee, from a load that the server surely bears; rates that could be it get `num_runs` runs.

    The objective holds for all calls: failed ones count as slower than any.
    """
    max_rate_per_s = runner.max_rate_per_s
    # Why no higher rate was taken, and whether that is the client's limit.
    why = (f"the client cannot offer more than {max_rate_per_s:,.0f}/s", True)

    def measure(rate_per_s: float, *, in_full: bool) -> tuple[LoadPoint, tuple[str, bool] | None]:
        """Return a rate's point, and the reason to reject it."""
        point = runner.measure(
            replace(first, rate_per_s=rate_per_s),
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

    best, missed = 0.0, None
    rate = min(first.rate_per_s, max_rate_per_s)
    for _ in range(_MAX_DOUBLINGS):
        if problem := search(rate):
            missed, why = rate, problem
            break
        best = rate
        if rate >= max_rate_per_s:
            break
        rate = min(2 * rate, max_rate_per_s)
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
