"""A server at a steady share of its saturated rate for a long time: does it become slower or larger?

Drift is the slope of the line fitted to the minutes, without the first.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from re4.benchmarks.common.report import write_report
from re4.benchmarks.common.resources import Meter, process_tree
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.load import ClientSettings, OpenLoad, Timing
from re4.benchmarks.load_generator.server import server_under_test
from re4.benchmarks.soak.options import SoakOptions
from re4.common.console import progress

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "soak.json"
_SATURATION_TIMING: Final = Timing(warmup_s=3.0, duration_s=10.0, deadline_s=30.0)
_DEADLINE_S: Final = 5.0
_MINUTE_S: Final = 60.0


def run(options: SoakOptions) -> dict[str, Any]:
    """Soak a server, write `soak.json`, and return it; Ctrl-C ends it early, with the minutes so far."""
    minutes: list[dict[str, Any]] = []
    with server_under_test(
        options.bundles,
        data=options.data,
        num_candidates=options.num_candidates,
        seed=options.seed,
        num_processes=options.num_processes,
        client=ClientSettings(num_workers=options.num_workers),
    ) as server:
        saturated = server.saturate(_SATURATION_TIMING, seed=options.seed)
        rate_per_s = options.share * saturated.achieved_per_s
        _log.info(
            f"{server.address}: {saturated.achieved_per_s:,.0f} calls/s saturated; "
            f"{options.minutes} minutes at {rate_per_s:,.0f}/s ({server.source})"
        )
        stopped = saturated.stopped
        load = OpenLoad(rate_per_s=rate_per_s, arrivals="poisson")
        timing = Timing(warmup_s=0.0, duration_s=_MINUTE_S, deadline_s=_DEADLINE_S)
        with progress("soaking", options.minutes) as bar:
            while not stopped and len(minutes) < options.minutes:
                number = len(minutes) + 1
                meter = Meter([server.pid])
                stats = server.client.run(load, timing, seed=options.seed + number, version=server.version)
                usage = meter.read()
                minutes.append(
                    {
                        "number": number,
                        **_latencies(stats),
                        **_sizes(server.pid),
                        "server_cores": usage.cores if usage else 0.0,
                    }
                )
                stopped = stats.stopped
                bar.advance()
                bar.note(f"p99 {minutes[-1]['p99_ms'] or float('nan'):.1f} ms")
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if stopped else "complete",
        "status_reason": stopped,
        **server.facts,
        "saturated_per_s": saturated.achieved_per_s,
        "share": options.share,
        "rate_per_s": rate_per_s,
        "drift": drift(minutes),
        "minutes": minutes,
    }
    write_report(options.out, {JSON_FILE: report})
    return report


def drift(minutes: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the change per hour, by the line fitted to all minutes but the first; None for fewer than three.

    Percentiles that fall among failed calls have no part in the line.
    """

    def slope(name: str, divisor: float = 1.0) -> float | None:
        values = [minute[name] for minute in minutes[1:]]
        known = [(place, value / divisor) for place, value in enumerate(values) if value is not None]
        if len(known) < 3:
            return None
        places, found = zip(*known, strict=True)
        return float(np.polyfit(places, found, 1)[0]) * 3600.0 / _MINUTE_S

    return {
        "p50_ms_per_hour": slope("p50_ms"),
        "p99_ms_per_hour": slope("p99_ms"),
        "rss_mib_per_hour": slope("rss_bytes", 2**20),
        "pss_mib_per_hour": slope("pss_bytes", 2**20),
        "open_files_per_hour": slope("num_open_files"),
    }


def _latencies(stats: CallStats) -> dict[str, Any]:
    """Percentiles are over all calls, failed ones slowest; None where they fall among those."""
    return {
        "num_calls": stats.num_calls,
        "failures": dict(stats.failures),
        "p50_ms": stats.percentile_ms(50),
        "p99_ms": stats.percentile_ms(99),
        "p999_ms": stats.percentile_ms(99.9),
        "max_answered_ms": stats.answered_us.percentile_ms(100),
        "client_lag_p99_ms": stats.lag_us.percentile_ms(99),
    }


def _sizes(pid: int) -> dict[str, int]:
    """Sizes of all the server's processes; RSS counts shared pages once for each process, PSS once in all."""
    processes = process_tree([pid])
    memory = [process.memory_full_info() for process in processes]
    return {
        "rss_bytes": sum(each.rss for each in memory),
        "pss_bytes": sum(each.pss for each in memory),
        "num_open_files": sum(process.num_fds() for process in processes),
        "num_threads": sum(process.num_threads() for process in processes),
    }
