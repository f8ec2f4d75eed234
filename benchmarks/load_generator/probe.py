"""A faint, steady caller beside a load: sees from moment to moment how a server answers, and when it is back.

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
_WELL_FOR_S: Final = 1.0
"""A server is back when it has been well for so long, from the first call of that time on."""


class Seen(NamedTuple):
    """What became of one call."""

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
        self._seen: list[Seen] = []

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start: float, end: float) -> list[Seen]:
        """Calls sent in this time that have ended, in the order of sending."""
        return sorted(seen for seen in tuple(self._seen) if start <= seen.sent < end)

    def _note(self, sent: float, ended: Any) -> None:
        seconds = time.monotonic() - sent
        self._seen.append(Seen(sent, seconds, ended.code() is grpc.StatusCode.OK))

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            due, num_sent = time.monotonic(), 0
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                sent = time.monotonic()
                call = method.future(self._payload, timeout=_DEADLINE_S)
                call.add_done_callback(partial(self._note, sent))
                num_sent += 1
                due = max(due + _INTERVAL_S, sent)
            until = time.monotonic() + _DEADLINE_S
            while len(self._seen) < num_sent and time.monotonic() < until:
                time.sleep(_INTERVAL_S)


def percentile_s(seen: Sequence[Seen], percent: float) -> float:
    """Latency percentile in seconds; failed calls are slower than any answer, which is infinite."""
    latencies = sorted(each.seconds if each.is_answered else float("inf") for each in seen)
    return latencies[nearest_rank(percent, len(latencies)) - 1] if latencies else float("inf")


def recovery_s(seen: Sequence[Seen], ended: float, *, normal_s: float) -> float | None:
    """Seconds from the end of a load until a server was well again; None where it never was.

    Args:
        seen: Calls sent from then on, in order.
        ended: When the load ended.
        normal_s: A call answered within so many seconds is one of a server that is well.
    """
    well_since: float | None = None
    for each in seen:
        if not each.is_answered or each.seconds > normal_s:
            well_since = None
        elif well_since is None:
            well_since = each.sent
        elif each.sent - well_since >= _WELL_FOR_S:
            return max(0.0, well_since - ended)
    return None
