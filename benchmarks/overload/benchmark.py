"""Far more calls than a server can answer, for a minute: goodput, latency of the accepted calls, recovery.

Server and client have a core each. The peak is the saturated rate, measured before and after; goodput is
compared with the higher of the two. A steady low-rate probe beside the load shows how the server answers at
each moment, and when it has recovered. Every time is `time.monotonic`.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import grpc

from re4.benchmarks.common.pinning import two_cores
from re4.benchmarks.common.report import write_report
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.call_stats import CallStats, nearest_rank
from re4.benchmarks.load_generator.client import START_DELAY_S
from re4.benchmarks.load_generator.load import ClientSettings, OpenLoad, Timing
from re4.benchmarks.load_generator.server import ServerUnderTest, server_under_test
from re4.benchmarks.load_generator.transport import METHOD
from re4.benchmarks.overload.options import OverloadOptions

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "overload.json"
GOAL_GOODPUT: Final = 0.9
GOAL_RECOVERY_S: Final = 0.5

_PEAK_WARMUP_S: Final = 1.0
_QUIET_S: Final = 2.0
_RECOVERY_TIMEOUT_S: Final = 5.0
_NORMAL_TIMES: Final = 3.0
"""A call is normal again within so many times the 99th percentile before the load …"""
_NORMAL_MIN_S: Final = 0.05
"""… or within this, where that was very fast."""
_INTERVAL_S: Final = 0.02
_DEADLINE_S: Final = 2.0
_RECOVERED_FOR_S: Final = 1.0
"""A server has recovered once calls have been normal for so long, counted from the first of them."""


class ProbeCall(NamedTuple):
    """One call of the probe."""

    sent: float
    seconds: float
    is_answered: bool


class Probe:
    """Calls fifty times a second in a thread of its own while the `with` block runs."""

    def __init__(self, address: str, payload: bytes) -> None:
        self._address = address
        self._payload = payload
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._calls: list[ProbeCall] = []

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> list[ProbeCall]:
        """Return the calls sent in this time that have ended, in the order of sending."""
        return sorted(call for call in tuple(self._calls) if start <= call.sent < end)

    def _record(self, sent: float, ended: Any) -> None:
        self._calls.append(ProbeCall(sent, time.monotonic() - sent, ended.code() is grpc.StatusCode.OK))

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            due, num_sent = time.monotonic(), 0
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                sent = time.monotonic()
                call = method.future(self._payload, timeout=_DEADLINE_S)
                call.add_done_callback(partial(self._record, sent))
                num_sent += 1
                due = max(due + _INTERVAL_S, sent)
            until = time.monotonic() + _DEADLINE_S
            while len(self._calls) < num_sent and time.monotonic() < until:
                time.sleep(_INTERVAL_S)


def percentile_s(calls: Sequence[ProbeCall], percent: float) -> float:
    """Return a latency percentile in seconds; a failed call's latency is infinite."""
    latencies = sorted(each.seconds if each.is_answered else float("inf") for each in calls)
    return latencies[nearest_rank(percent, len(latencies)) - 1] if latencies else float("inf")


def recovery_s(calls: Sequence[ProbeCall], ended: float, *, normal_s: float) -> float | None:
    """Return the seconds from the end of a load until calls were normal again; None where they never were.

    The calls are those sent from then on, in order; one is normal that is answered within `normal_s`.
    """
    normal_since: float | None = None
    for each in calls:
        if not each.is_answered or each.seconds > normal_s:
            normal_since = None
        elif normal_since is None:
            normal_since = each.sent
        elif each.sent - normal_since >= _RECOVERED_FOR_S:
            return max(0.0, normal_since - ended)
    return None


def run(options: OverloadOptions) -> dict[str, Any]:
    """Overload a server, write `overload.json`, and return it."""
    peak_timing = Timing(warmup_s=_PEAK_WARMUP_S, duration_s=options.peak_seconds, deadline_s=10.0)
    timing = Timing(warmup_s=0.0, duration_s=options.seconds, deadline_s=options.deadline_s)
    with server_under_test(
        options.bundles,
        data=options.data,
        num_candidates=options.num_candidates,
        seed=options.seed,
        server_options=shlex.split(options.server_options),
        cores=two_cores(),
        client=ClientSettings(num_channels=options.num_connections),
    ) as server:
        before, peak_cpu_us = _measured(server, lambda: server.saturate(peak_timing, seed=options.seed))
        rate_per_s = options.factor * before.achieved_per_s
        _log.info(f"peak {before.achieved_per_s:,.0f}/s; {rate_per_s:,.0f}/s for {options.seconds:g} s")
        with Probe(server.address, server.payloads[0]) as probe:
            began = time.monotonic()
            time.sleep(_QUIET_S)
            quiet_p99_s = percentile_s(probe.between(began, time.monotonic()), 99)
            load = OpenLoad(rate_per_s=rate_per_s, arrivals="poisson")
            ended = time.monotonic() + START_DELAY_S + timing.sending_s
            stats, cpu_us = _measured(
                server,
                lambda: server.client.run(load, timing, seed=options.seed + 1, version=server.version),
            )
            time.sleep(max(0.0, ended + _RECOVERY_TIMEOUT_S - time.monotonic()))
        after = server.saturate(peak_timing, seed=options.seed + 2)
    normal_s = max(_NORMAL_TIMES * quiet_p99_s, _NORMAL_MIN_S)
    peak_per_s = max(before.achieved_per_s, after.achieved_per_s)
    goodput_per_s = stats.answered_us.count / stats.counted_s if stats.counted_s else 0.0
    report = {
        "schema_version": SCHEMA_VERSION,
        **server.facts,
        "factor": options.factor,
        "seconds": options.seconds,
        "deadline_s": options.deadline_s,
        "num_connections": options.num_connections,
        "peak_per_s": {"before": before.achieved_per_s, "after": after.achieved_per_s},
        "offered_per_s": stats.offered_per_s or 0.0,
        "goodput_per_s": goodput_per_s,
        "goodput_ratio": goodput_per_s / peak_per_s if peak_per_s else 0.0,
        "cpu_us_an_answer": {"peak": peak_cpu_us, "overload": cpu_us},
        "accepted_ms": {
            f"p{percent}": stats.answered_us.percentile_ms(percent) for percent in (50, 90, 99, 100)
        },
        "failures": dict(stats.failures),
        "client_lag_p99_ms": stats.lag_us.percentile_ms(99),
        "batch_size": stats.batch_size.mean,
        "quiet_p99_ms": quiet_p99_s * 1e3,
        "normal_ms": normal_s * 1e3,
        "recovery_s": recovery_s(probe.between(ended, float("inf")), ended, normal_s=normal_s),
        "stopped": before.stopped or stats.stopped or after.stopped,
    }
    write_report(options.out, {JSON_FILE: report})
    return report


def _measured(server: ServerUnderTest, load: Callable[[], CallStats]) -> tuple[CallStats, float | None]:
    """Put a load on a server; return its statistics, and the server's CPU microseconds for each answer.

    Other work on the machine changes the CPU time less than the answers a second.
    """
    meter = Meter([server.pid])
    stats = load()
    usage, num_answers = meter.read(), stats.answered_us.count + stats.num_warmup
    return stats, 1e6 * usage.cpu_s / num_answers if usage and num_answers else None


def missed(report: dict[str, Any]) -> list[str]:
    """Return the goals that a report misses, in words."""
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
