"""A steady low-rate probe beside a load: how a server answers at each moment, and when it has recovered.

Every time is `time.monotonic`.
"""

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import grpc

from re4.benchmarks.load_generator.histogram import nearest_rank
from re4.benchmarks.load_generator.transport import METHOD

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
        seconds = time.monotonic() - sent
        self._calls.append(ProbeCall(sent, seconds, ended.code() is grpc.StatusCode.OK))

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

    Args:
        calls: Calls sent from then on, in order.
        ended: When the load ended.
        normal_s: A call answered within so many seconds is normal.
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
