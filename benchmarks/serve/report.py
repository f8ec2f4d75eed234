"""Measured points and pairs as plain values for `report.json`; the schema is in docs/benchmarks.md."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from re4.benchmarks.common.confidence import interval
from re4.benchmarks.common.resources import Usage
from re4.benchmarks.load_generator.call_stats import SHED, Histogram
from re4.benchmarks.load_generator.load import OpenLoad
from re4.benchmarks.load_generator.outcome import MISSED_DEADLINE
from re4.benchmarks.serve.runner import LoadPoint, LoadRunner, RepeatRun

PERCENTILES: Final[Mapping[str, float]] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9}
_SPECTRUM: Final = (0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100)
_COMPARED: Final[Mapping[str, Callable[[RepeatRun], float | None]]] = {
    "answers_per_s": lambda run: run.stats.achieved_per_s,
    **{
        f"{name}_ms": lambda run, percent=percent: run.stats.percentile_ms(percent)  # type: ignore[misc]
        for name, percent in PERCENTILES.items()
    },
    "server_cpu_us_an_answer": lambda run: (
        run.server.cores * 1e6 / run.stats.achieved_per_s if run.server and run.stats.achieved_per_s else None
    ),
    "server_cores": lambda run: run.server.cores if run.server else None,
    "server_memory_bytes": lambda run: run.server.memory_bytes if run.server else None,
}


def point_facts(point: LoadPoint) -> dict[str, Any]:
    """Return everything about one load."""
    pooled, runs = point.pooled, point.runs
    return {
        "loop": "open" if isinstance(point.load, OpenLoad) else "closed",
        "label": point.load.label,
        **asdict(point.load),
        "purpose": point.purpose,
        "num_runs": len(runs),
        "client_limit": point.limit,
        "offered_per_s": interval([run.stats.offered_per_s for run in runs]),
        "achieved_per_s": interval([run.stats.achieved_per_s for run in runs]),
        "num_calls": pooled.num_calls,
        "num_answered": pooled.answered_us.count,
        "num_shed": pooled.failures[SHED],
        "num_missed_deadlines": pooled.failures[MISSED_DEADLINE],
        "failures": dict(pooled.failures),
        "failure_details": pooled.failure_details,
        "num_warmup_calls": pooled.num_warmup,
        "latency_ms": {
            name: {
                "pooled": pooled.percentile_ms(percent),
                **(interval([run.stats.percentile_ms(percent) for run in runs]) or {}),
            }
            for name, percent in PERCENTILES.items()
        },
        "max_answered_ms": pooled.answered_us.percentile_ms(100),
        "spectrum_ms": [[percent, pooled.percentile_ms(percent)] for percent in _SPECTRUM],
        "client_lag_ms": {f"p{percent}": pooled.lag_us.percentile_ms(percent) for percent in (50, 99)},
        "stages_us": {stage: _summary(values) for stage, values in pooled.stages_us.items()},
        "batch_size": _summary(pooled.batch_size),
        "versions": dict(pooled.versions),
        "server_usage": _usage([run.server for run in runs]),
        "client_usage": _usage([run.client for run in runs]),
        "other_cores": max(run.other_cores for run in runs),
        "num_disturbed_runs": point.num_disturbed,
        "runs": [_run_facts(run) for run in runs],
    }


def points_facts(runner: LoadRunner) -> list[dict[str, Any]]:
    """Return everything about the loads that were measured."""
    return [point_facts(point) for point in runner.points if point.runs]


def ratios(point: LoadPoint, other: LoadPoint) -> dict[str, dict[str, float | None] | None]:
    """Return the other point's figures as multiples of the first one's, with intervals over the pairs.

    A ratio is computed within its pair of runs. It is None for a figure that some run lacks, such as a
    percentile that falls among failed calls.
    """

    def ratio(figure: Callable[[RepeatRun], float | None], pair: tuple[RepeatRun, RepeatRun]) -> float | None:
        first, second = map(figure, pair)
        return second / first if first and second is not None else None

    pairs = list(zip(point.runs, other.runs, strict=False))
    return {name: interval([ratio(figure, pair) for pair in pairs]) for name, figure in _COMPARED.items()}


def _run_facts(run: RepeatRun) -> dict[str, Any]:
    stats = run.stats
    return {
        "num_calls": stats.num_calls,
        "num_answered": stats.answered_us.count,
        "failures": dict(stats.failures),
        "seconds": stats.seconds,
        "achieved_per_s": stats.achieved_per_s,
        "latency_ms": {name: stats.percentile_ms(percent) for name, percent in PERCENTILES.items()},
        "stopped": stats.stopped,
    }


def _summary(values: Histogram) -> dict[str, float | None]:
    percentiles = {f"p{percent}": values.percentile(percent) for percent in (50, 99)}
    return {"mean": values.mean, **percentiles, "max": values.max}


def _usage(usages: Sequence[Usage | None]) -> dict[str, float | int] | None:
    known = [usage for usage in usages if usage is not None]
    if not known:
        return None
    return {
        "mean_cores": sum(usage.cores for usage in known) / len(known),
        "max_memory_bytes": max(usage.memory_bytes for usage in known),
        "num_processes": known[-1].num_processes,
    }
