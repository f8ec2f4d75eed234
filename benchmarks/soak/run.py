"""A server under a steady share of its saturation for a long time: does it grow slower or larger?

Finds saturation with waiting callers, then calls on schedule, minute by minute, and looks at the server's
processes after each. Drift is the slope of the line fitted to the minutes, the first left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.load import OpenLoad, Timing
from re4.benchmarks.load_generator.own_server import Subject, own_server
from re4.common.console import progress
from re4.common.files import write_json

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "soak.json"
_SATURATION_TIMING: Final = Timing(warmup_s=3.0, duration_s=10.0, deadline_s=30.0)
_DEADLINE_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class SoakPlan:
    """What to do, and on what."""

    subject: Subject
    num_minutes: int
    share: float
    """Of the saturated rate, 0 to 1."""
    minute_s: float = 60.0
    """Seconds of a minute; tests make it shorter."""


@dataclass(frozen=True, kw_only=True)
class Minute:
    """What one minute was like."""

    number: int
    """From 1."""
    num_calls: int
    failures: dict[str, int]
    """Failed calls by gRPC status."""
    p50_ms: float | None
    """Percentiles are of all calls, failed ones slowest; None where it falls among those."""
    p99_ms: float | None
    p999_ms: float | None
    max_answered_ms: float | None
    client_lag_p99_ms: float | None
    """How late the client sent; part of the latencies."""
    rss_bytes: int
    """Of all the server's processes, at the end; pages that they share count once for each."""
    pss_bytes: int
    """The same, shared pages divided among them."""
    num_open_files: int
    num_threads: int
    server_cores: float
    """Processor seconds per second."""


def soak(plan: SoakPlan, out: Path) -> dict[str, Any]:
    """Soak a server of our own, and write `soak.json` into `out`; Ctrl-C ends it early, with what there is.

    Raises:
        Re4Error: the server or the client did not start.
    """
    minutes: list[Minute] = []
    seed = plan.subject.seed
    with own_server(plan.subject) as server:
        facts = server.facts()
        saturated = server.saturate(_SATURATION_TIMING, seed=seed)
        rate_per_s = plan.share * saturated.achieved_per_s
        _log.info(
            f"{server.address}: {saturated.achieved_per_s:,.0f} calls/s saturated; "
            f"{plan.num_minutes} minutes at {rate_per_s:,.0f}/s ({server.source})"
        )
        stopped = saturated.stopped
        load = OpenLoad(rate_per_s=rate_per_s, arrivals="poisson")
        timing = Timing(warmup_s=0.0, duration_s=plan.minute_s, deadline_s=_DEADLINE_S)
        with progress("soaking", plan.num_minutes) as bar:
            while not stopped and len(minutes) < plan.num_minutes:
                number = len(minutes) + 1
                meter = Meter([server.pid])
                tally = server.client.run(load, timing, seed=seed + number, version=server.version)
                usage = meter.read()
                minutes.append(
                    _minute(number, tally, psutil.Process(server.pid), usage.cores if usage else 0.0)
                )
                stopped = tally.stopped
                bar.advance()
                bar.note(f"p99 {minutes[-1].p99_ms or float('nan'):.1f} ms")
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if stopped else "complete",
        "status_reason": stopped,
        **facts,
        "saturated_per_s": saturated.achieved_per_s,
        "share": plan.share,
        "rate_per_s": rate_per_s,
        "drift": drift(minutes, minute_s=plan.minute_s),
        "minutes": [asdict(minute) for minute in minutes],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON_FILE, report)
    return report


def drift(minutes: Sequence[Minute], *, minute_s: float = 60.0) -> dict[str, float | None]:
    """Change per hour, by the line fitted to all minutes but the first; None for fewer than three."""
    return {
        "p50_ms_per_hour": _slope([minute.p50_ms for minute in minutes[1:]], minute_s),
        "p99_ms_per_hour": _slope([minute.p99_ms for minute in minutes[1:]], minute_s),
        "rss_mib_per_hour": _slope([minute.rss_bytes / 2**20 for minute in minutes[1:]], minute_s),
        "pss_mib_per_hour": _slope([minute.pss_bytes / 2**20 for minute in minutes[1:]], minute_s),
        "open_files_per_hour": _slope([float(minute.num_open_files) for minute in minutes[1:]], minute_s),
    }


def _slope(values: Sequence[float | None], minute_s: float) -> float | None:
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 3:
        return None
    places, found = zip(*known, strict=True)
    return float(np.polyfit(places, found, 1)[0]) * 3600.0 / minute_s


def _minute(number: int, tally: Tally, server: psutil.Process, cores: float) -> Minute:
    processes = [server, *server.children(recursive=True)]
    memory = [process.memory_full_info() for process in processes]
    lag_us, slowest_us = tally.lag_us.percentile(99), tally.answered_us.max
    return Minute(
        number=number,
        num_calls=tally.num_calls,
        failures=dict(tally.failures),
        p50_ms=tally.percentile_ms(50),
        p99_ms=tally.percentile_ms(99),
        p999_ms=tally.percentile_ms(99.9),
        max_answered_ms=None if slowest_us is None else slowest_us / 1000,
        client_lag_p99_ms=None if lag_us is None else lag_us / 1000,
        rss_bytes=sum(each.rss for each in memory),
        pss_bytes=sum(each.pss for each in memory),
        num_open_files=sum(process.num_fds() for process in processes),
        num_threads=sum(process.num_threads() for process in processes),
        server_cores=cores,
    )
