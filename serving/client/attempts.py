"""Further attempts of a call to several servers: after an error, and beside a server that is slow to answer.

A rejected call is sent again after the time that the server advises, a call that met no server after a short
time, until the deadline. A call that reads, and takes longer than 95 % of the recent ones, is sent a second
time (hedging); the first answer counts. The first hedges of calls are limited to a share of the calls, so
that they do not double the load of servers that are all slow. Further ones follow at doubled intervals.
"""

import asyncio
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic
from typing import Any, Final, TypeVar

import grpc

_ReplyT = TypeVar("_ReplyT")

_NOT_ANSWERED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_PUSHBACK: Final = "grpc-retry-pushback-ms"
_ADVICE: Final = re.compile(r"ry again in (\d+) ms")
"""In the message of a server whose transport cannot send metadata."""
_FIRST_HEDGE_S: Final = 0.1
"""Delay of a hedge before there are enough answers to know the usual time."""
_MIN_HEDGE_S: Final = 0.002
_NUM_LATENCIES: Final = 512
_LATENCIES_PER_PERCENTILE: Final = 32
_PERCENTILE: Final = 0.95
_HEDGES_PER_CALL: Final = 0.2
_MAX_HEDGE_TOKENS: Final = 50.0
_LATE_SHARE: Final = 0.25
"""Share of the deadline after which a hedge is not limited, and longest interval of two."""
_FIRST_BACKOFF_S: Final = 0.02
_MAX_BACKOFF_S: Final = 1.0


class HedgeTimer:
    """Decides when a call is late, from the recent calls of a client. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latencies_s: deque[float] = deque(maxlen=_NUM_LATENCIES)
        self._num_seen = 0
        self._tokens = _MAX_HEDGE_TOKENS
        self.delay_s = _FIRST_HEDGE_S
        """Time after which a call is late."""

    def answered(self, seconds: float) -> None:
        """Note the time of an answered call."""
        with self._lock:
            self._latencies_s.append(seconds)
            self._tokens = min(_MAX_HEDGE_TOKENS, self._tokens + _HEDGES_PER_CALL)
            self._num_seen += 1
            if self._num_seen % _LATENCIES_PER_PERCENTILE == 0:
                in_order = sorted(self._latencies_s)
                self.delay_s = max(_MIN_HEDGE_S, in_order[int(_PERCENTILE * len(in_order))])

    def take_token(self) -> bool:
        """Return whether one more hedge is allowed, and count it."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class CallPlan:
    """When the attempts of one call begin, and which error ends it."""

    def __init__(self, timer: HedgeTimer, timeout_s: float, *, is_repeatable: bool, is_hedged: bool) -> None:
        """Begin now.

        Args:
            timer: Of the client.
            timeout_s: Time limit of all attempts together.
            is_repeatable: Whether the call may be sent again where it is not known to have been rejected.
            is_hedged: Whether it may be sent to a second server while the first one works on it.
        """
        self._timer = timer
        self._is_repeatable = is_repeatable
        self._is_hedged = is_hedged
        self._timeout_s = timeout_s
        self._num_failures = 0
        self._num_unanswered = 0
        """Attempts since the last one that failed."""
        self.began_s = monotonic()
        self.deadline_s = self.began_s + timeout_s
        self._since_s = self.began_s
        """When the oldest of these began."""
        self.next_s = self.began_s
        """When the next attempt begins."""

    def starts(self, now_s: float) -> bool:
        """Return whether an attempt begins now, and plan the one after it."""
        if now_s < self.next_s:
            return False
        late_s = _LATE_SHARE * self._timeout_s
        # A second hedge means that two servers are late, or that both attempts went to one that hangs.
        is_limited = self._num_unanswered == 1 and now_s - self._since_s < late_s
        is_allowed = not is_limited or self._timer.take_token()
        if self._num_unanswered == 0:
            self._since_s = now_s
        self.next_s = inf
        if self._is_hedged:
            self.next_s = now_s + min(late_s, self._timer.delay_s * 2.0**self._num_unanswered)
        self._num_unanswered += is_allowed
        return is_allowed

    def goes_on(self, error: grpc.RpcError, now_s: float, num_running: int) -> bool:
        """Return whether the call has a further attempt after this one failed, and plan it."""
        wait_s = self._wait_s(error)
        if wait_s is None:
            return False
        self._num_failures += 1
        self._num_unanswered = 0
        if now_s + wait_s < self.deadline_s:
            self.next_s = min(self.next_s, now_s + wait_s) if num_running else now_s + wait_s
            return True
        return num_running > 0

    def answered(self, now_s: float) -> None:
        """Note the answer."""
        self._timer.answered(now_s - self._since_s)

    def _wait_s(self, error: grpc.RpcError) -> float | None:
        """Return the seconds to wait after an error; None for one that ends the call."""
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            advised_ms = _advised_ms(error)
            if advised_ms is None or advised_ms < 0:
                return None
            return advised_ms / 1e3 * random.uniform(1.0, 1.5)  # noqa: S311
        if not self._is_repeatable or code not in _NOT_ANSWERED:
            return None
        backoff_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**self._num_failures)
        return backoff_s * random.uniform(0.5, 1.0)  # noqa: S311


def _advised_ms(error: grpc.RpcError) -> int | None:
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == _PUSHBACK and re.fullmatch(r"-?\d{1,9}", str(value)):
            return int(value)
    found = _ADVICE.search(str(error.details()))
    return None if found is None else int(found[1])


def call_with_attempts(start: Callable[[float], Any], plan: CallPlan) -> Any:
    """Return the reply of a call.

    Args:
        start: Begins an attempt with a time limit, and returns its future.
        plan: Of this call.

    Raises:
        grpc.RpcError: the call failed.
    """
    finished: SimpleQueue[Any] = SimpleQueue()
    running: set[Any] = set()
    try:
        while True:
            now_s = monotonic()
            if plan.starts(now_s):
                attempt = start(max(0.0, plan.deadline_s - now_s))
                running.add(attempt)
                attempt.add_done_callback(finished.put)
            try:
                until_s = None if plan.next_s == inf else max(0.0, plan.next_s - monotonic())
                attempt = finished.get(timeout=until_s)
            except Empty:
                continue
            running.remove(attempt)
            error = attempt.exception()
            if error is None:
                plan.answered(monotonic())
                return attempt.result()
            if not plan.goes_on(error, monotonic(), len(running)):
                raise error
    finally:
        for attempt in running:
            attempt.cancel()


async def await_with_attempts(start: Callable[[float], Awaitable[_ReplyT]], plan: CallPlan) -> _ReplyT:
    """Return the reply of a call, as `call_with_attempts` does."""
    running: set[asyncio.Future[_ReplyT]] = set()
    try:
        while True:
            now_s = monotonic()
            if plan.starts(now_s):
                running.add(asyncio.ensure_future(_awaited(start(max(0.0, plan.deadline_s - now_s)))))
            until_s = None if plan.next_s == inf else max(0.0, plan.next_s - monotonic())
            if not running:
                await asyncio.sleep(until_s or 0.0)
                continue
            done, running = await asyncio.wait(running, timeout=until_s, return_when=asyncio.FIRST_COMPLETED)
            errors = {attempt: attempt.exception() for attempt in done}  # all are read, or asyncio logs them
            for attempt, error in errors.items():
                if error is None:
                    plan.answered(monotonic())
                    return attempt.result()
            for error in errors.values():
                if not isinstance(error, grpc.RpcError) or not plan.goes_on(error, monotonic(), len(running)):
                    raise error or AssertionError
    finally:
        for attempt in running:
            attempt.cancel()


async def _awaited(call: Awaitable[_ReplyT]) -> _ReplyT:
    return await call
