"""Far more calls than a server can answer, for a minute: what is answered, how soon, and how it recovers.

The server has a core of its own, and so has the client. The peak is what callers who wait for their answers
get out of it, before and after; goodput is held against the higher of the two.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.cores import two_cores
from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.client import START_DELAY_S
from re4.benchmarks.load_generator.load import OpenLoad, Timing
from re4.benchmarks.load_generator.own_server import OwnServer, Subject, own_server
from re4.benchmarks.load_generator.probe import Probe, percentile_s, recovery_s
from re4.common.files import write_json

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "overload.json"
GOAL_GOODPUT: Final = 0.85
GOAL_RECOVERY_S: Final = 2.0

_PEAK_WARMUP_S: Final = 1.0
_QUIET_S: Final = 2.0
_WATCH_S: Final = 2 * GOAL_RECOVERY_S + 1.0
"""After the load: a recovery that takes longer is none."""
_NORMAL_TIMES: Final = 3.0
"""A call is normal again within so many times the 99th percentile of before the load …"""
_NORMAL_AT_LEAST_S: Final = 0.05
"""… or within this, where that was very fast."""


@dataclass(frozen=True, kw_only=True)
class OverloadPlan:
    """What to do, and on what."""

    subject: Subject
    factor: float
    """Offered load, in peaks."""
    seconds: float
    """How long the load lasts."""
    peak_seconds: float
    """How long each measurement of the peak lasts."""
    deadline_s: float
    """Of every call."""


def overload(plan: OverloadPlan, out: Path) -> dict[str, Any]:
    """Do it to a server of our own, and write `overload.json` into `out`.

    Raises:
        UsageError: this process may use one core only.
        Re4Error: the server or the client did not start.
    """
    with own_server(plan.subject, cores=two_cores()) as server:
        report = _measure(plan, server)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON_FILE, report)
    return report


def _measure(plan: OverloadPlan, server: OwnServer) -> dict[str, Any]:
    facts, seed = server.facts(), plan.subject.seed
    peak_timing = Timing(warmup_s=_PEAK_WARMUP_S, duration_s=plan.peak_seconds, deadline_s=10.0)
    before = server.saturate(peak_timing, seed=seed)
    rate_per_s = plan.factor * before.achieved_per_s
    _log.info(f"peak {before.achieved_per_s:,.0f}/s; {rate_per_s:,.0f}/s for {plan.seconds:g} s")
    with Probe(server.address, server.payloads[0]) as probe:
        began = time.monotonic()
        time.sleep(_QUIET_S)
        quiet_p99_s = percentile_s(probe.between(began, time.monotonic()), 99)
        timing = Timing(warmup_s=0.0, duration_s=plan.seconds, deadline_s=plan.deadline_s)
        load = OpenLoad(rate_per_s=rate_per_s, arrivals="poisson")
        ended = time.monotonic() + START_DELAY_S + timing.sending_s
        tally = server.client.run(load, timing, seed=seed + 1, version=server.version)
        time.sleep(max(0.0, ended + _WATCH_S - time.monotonic()))
    normal_s = max(_NORMAL_TIMES * quiet_p99_s, _NORMAL_AT_LEAST_S)
    recovered_s = recovery_s(probe.between(ended, float("inf")), ended, normal_s=normal_s)
    after = server.saturate(peak_timing, seed=seed + 2)
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "factor": plan.factor,
        "seconds": plan.seconds,
        "deadline_s": plan.deadline_s,
        **_findings(before, tally, after),
        "quiet_p99_ms": quiet_p99_s * 1e3,
        "normal_ms": normal_s * 1e3,
        "recovery_s": recovered_s,
        "stopped": before.stopped or tally.stopped or after.stopped,
    }


def _findings(before: Tally, tally: Tally, after: Tally) -> dict[str, Any]:
    peak_per_s = max(before.achieved_per_s, after.achieved_per_s)
    goodput_per_s = tally.answered_us.count / tally.counted_s if tally.counted_s else 0.0
    lag_us = tally.lag_us.percentile(99)
    return {
        "peak_per_s": {"before": before.achieved_per_s, "after": after.achieved_per_s},
        "offered_per_s": tally.num_calls / tally.counted_s if tally.counted_s else 0.0,
        "goodput_per_s": goodput_per_s,
        "goodput_ratio": goodput_per_s / peak_per_s if peak_per_s else 0.0,
        "accepted_ms": {
            f"p{percent:g}": None if (found := tally.answered_us.percentile(percent)) is None else found / 1e3
            for percent in (50, 90, 99, 100)
        },
        "failures": dict(tally.failures),
        "client_lag_p99_ms": None if lag_us is None else lag_us / 1e3,
        "batch_size": tally.batch_size.mean,
    }


def missed(report: dict[str, Any]) -> list[str]:
    """Which goals a report misses, in words."""
    found = []
    if report["goodput_ratio"] < GOAL_GOODPUT:
        found.append(f"goodput {report['goodput_ratio']:.0%} of the peak, the goal is {GOAL_GOODPUT:.0%}")
    recovered_s = report["recovery_s"]
    if recovered_s is None or recovered_s > GOAL_RECOVERY_S:
        took = "never" if recovered_s is None else f"in {recovered_s:.1f} s"
        found.append(f"back to normal {took}, the goal is {GOAL_RECOVERY_S:g} s")
    if report["stopped"]:
        found.append(report["stopped"])
    return found
