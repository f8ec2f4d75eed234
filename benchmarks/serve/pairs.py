"""Two servers under the same load in turns: what slows the machine for a while slows both of a pair.

A ratio is computed within its pair, and its interval over the pairs. Above 1, the other has more of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from re4.benchmarks.common.repeat_intervals import interval
from re4.benchmarks.load_generator.load import Load
from re4.benchmarks.serve.measure import Bench, Point, RepeatRun
from re4.benchmarks.serve.report import PERCENTILES

FIGURES: Final[Mapping[str, Callable[[RepeatRun], float | None]]] = {
    "answers_per_s": lambda run: run.tally.achieved_per_s,
    **{
        f"{name}_ms": lambda run, percent=percent: run.tally.percentile_ms(percent)  # type: ignore[misc]
        for name, percent in PERCENTILES.items()
    },
    "server_cpu_us_an_answer": lambda run: (
        run.server.cores * 1e6 / run.tally.achieved_per_s if run.server and run.tally.achieved_per_s else None
    ),
    "server_cores": lambda run: run.server.cores if run.server else None,
    "server_memory_bytes": lambda run: run.server.memory_bytes if run.server else None,
}


def measure_pairs(bench: Bench, other: Bench, load: Load, *, num_pairs: int) -> None:
    """Put a load on both, in turns; who goes first takes turns too.

    Raises:
        StoppedError: as `Bench.measure`; the points of both keep what there is.
    """
    sides = [(bench, bench.begin(load)), (other, other.begin(load))]
    for number in range(num_pairs):
        for side, point in sides if number % 2 == 0 else sides[::-1]:
            side.run_once(point, num_runs=num_pairs)


def ratios(point: Point, other: Point) -> dict[str, dict[str, float | None] | None]:
    """The other server's figures as multiples of the first one's, with 95 % intervals over the pairs.

    None for a figure that some run lacks, such as a percentile that falls among failed calls.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for name, figure in FIGURES.items():
        of_pairs = [
            None
            if (first := figure(ours)) is None or not first or (second := figure(theirs)) is None
            else second / first
            for ours, theirs in zip(point.runs, other.runs, strict=False)
        ]
        over_pairs = interval(of_pairs)
        found[name] = asdict(over_pairs) if over_pairs else None
    return found
