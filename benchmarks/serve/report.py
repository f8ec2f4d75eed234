"""A benchmark's findings as one JSON object. Its schema is described in the README one folder up.

Only arranges and sums up; decides nothing. Times in milliseconds unless the name says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from re4.benchmarks.common.repeat_intervals import interval
from re4.benchmarks.common.resources import Usage
from re4.benchmarks.load_generator.call_errors import MISSED_DEADLINE
from re4.benchmarks.load_generator.call_stats import SHED, Tally
from re4.benchmarks.load_generator.histogram import Histogram
from re4.benchmarks.load_generator.load import OpenLoad
from re4.benchmarks.serve.measure import Point, RepeatRun

SCHEMA_VERSION: Final = 1
PERCENTILES: Final[Mapping[str, float]] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9}
_SPECTRUM: Final = (0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100)


def point_facts(point: Point) -> dict[str, Any]:
    """Everything about one load."""
    pooled, runs = point.pooled, point.runs
    load = point.load
    return {
        "loop": "open" if isinstance(load, OpenLoad) else "closed",
        "label": load.label,
        **asdict(load),
        "purpose": point.purpose,
        "num_runs": len(runs),
        "client_limit": point.limit,
        "offered_per_s": _over_runs([_offered_per_s(run.tally) for run in runs]),
        "achieved_per_s": _over_runs([run.tally.achieved_per_s for run in runs]),
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
                **(_over_runs([run.tally.percentile_ms(percent) for run in runs]) or {}),
            }
            for name, percent in PERCENTILES.items()
        },
        "max_answered_ms": _ms(pooled.answered_us.max),
        "spectrum_ms": [[percent, pooled.percentile_ms(percent)] for percent in _SPECTRUM],
        "client_lag_ms": {"p50": _ms(pooled.lag_us.percentile(50)), "p99": _ms(pooled.lag_us.percentile(99))},
        "stages_us": {stage: _summary(values) for stage, values in pooled.stages_us.items()},
        "batch_size": _summary(pooled.batch_size),
        "versions": dict(pooled.versions),
        "server_usage": _usage([run.server for run in runs]),
        "client_usage": _usage([run.client for run in runs]),
        "other_cores": max(run.other_cores for run in runs),
        "num_disturbed_runs": point.num_disturbed,
        "runs": [_run_facts(run) for run in runs],
    }


def _run_facts(run: RepeatRun) -> dict[str, Any]:
    tally = run.tally
    return {
        "num_calls": tally.num_calls,
        "num_answered": tally.answered_us.count,
        "failures": dict(tally.failures),
        "seconds": tally.seconds,
        "achieved_per_s": tally.achieved_per_s,
        "latency_ms": {name: tally.percentile_ms(percent) for name, percent in PERCENTILES.items()},
        "stopped": tally.stopped,
    }


def _offered_per_s(tally: Tally) -> float | None:
    return tally.num_calls / tally.counted_s if tally.counted_s else None


def _over_runs(values: Sequence[float | None]) -> dict[str, float | None] | None:
    found = interval(values)
    return asdict(found) if found else None


def _summary(values: Histogram) -> dict[str, float | None]:
    return {
        "mean": values.mean,
        "p50": values.percentile(50),
        "p99": values.percentile(99),
        "max": values.max,
    }


def _usage(usages: Sequence[Usage | None]) -> dict[str, float | int] | None:
    known = [usage for usage in usages if usage is not None]
    if not known:
        return None
    return {
        "mean_cores": sum(usage.cores for usage in known) / len(known),
        "max_memory_bytes": max(usage.memory_bytes for usage in known),
        "num_processes": known[-1].num_processes,
    }


def _ms(value_us: int | None) -> float | None:
    return None if value_us is None else value_us / 1000
