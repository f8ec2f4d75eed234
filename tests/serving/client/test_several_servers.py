"""A client of several servers: no call fails while one is killed, one hangs and one is overloaded."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from running_server import DEADLINE_S, RunningServer

from re4 import AsyncRetrievalClient, RequestError, RetrievalClient, ServerError, UsageError
from re4.protos.v1 import retrieval_pb2
from re4.serving.client.attempts import CallPlan, HedgeTimer, call_with_attempts
from re4.serving.client.several_servers import is_several, target_of

HISTORY = ["item-1-é", "item-4-é"]


@contextlib.contextmanager
def stopped(server: RunningServer) -> Iterator[None]:
    """Stop all processes of a server, as a machine that hangs does: its connections stay."""
    pids = [server.pid, *server.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def overloaded(server: RunningServer) -> Iterator[None]:
    """Overfill the queue of a server again and again.

    It is free for as long as a burst took, so that other calls come through on a slow machine, too.
    """
    users = [[f"item-{user % 60}-é"] for user in range(256)]
    end, was_rejected = threading.Event(), threading.Event()

    def load() -> None:
        with RetrievalClient(server.address) as client, ThreadPoolExecutor(6) as callers:
            while not end.is_set():
                began_s = time.monotonic()
                calls = [callers.submit(client.retrieve_batch, users, 50) for _ in range(6)]
                for error in filter(None, [call.exception() for call in calls]):
                    assert "RESOURCE_EXHAUSTED" in str(error)
                    was_rejected.set()
                end.wait(time.monotonic() - began_s)

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        try:
            assert was_rejected.wait(DEADLINE_S)
            yield
        finally:
            end.set()
    loading.result()


def test_no_call_fails_with_one_server_killed_one_hanging_and_one_overloaded(bundles: Path) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--max-queue-ms", "20")
        killed, hanging, busy = (stack.enter_context(RunningServer(bundles, *options)) for _ in range(3))
        address = ",".join(server.address for server in (killed, hanging, busy))
        client = stack.enter_context(RetrievalClient(address, timeout_s=30.0))
        expected = client.retrieve(HISTORY, 10).item_ids

        async def ask() -> list[Any]:
            async with AsyncRetrievalClient(address, timeout_s=30.0) as opened:
                calls = (opened.retrieve(HISTORY, 10) for _ in range(40))
                return [found.item_ids for found in await asyncio.gather(*calls)]

        def ask_in_threads(num_calls: int) -> list[Any]:
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(lambda _: client.retrieve(HISTORY, 10).item_ids, range(num_calls)))

        assert ask_in_threads(40) == [expected] * 40
        killed.signal(signal.SIGKILL)
        assert ask_in_threads(40) == [expected] * 40
        with stopped(hanging):
            assert ask_in_threads(40) == [expected] * 40
            with overloaded(busy):
                assert ask_in_threads(40) == [expected] * 40
                assert asyncio.run(ask()) == [expected] * 40
        assert client.info()["num_processes"] == 1


def test_a_request_that_is_wrong_is_not_sent_again(server: RunningServer) -> None:
    with RetrievalClient(f"ipv4:{server.address}") as client:
        with pytest.raises(ServerError, match="INVALID_ARGUMENT"):
            client.retrieve(HISTORY, 10, filters=[], num_reasons=10_000)
        with pytest.raises(RequestError):
            client.retrieve(["a", 1], 10)  # type: ignore[list-item]
        assert client.record_events(["u"], HISTORY[:1]) == 1


class _Error(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, *, pushback: str | None = None, details: str = "") -> None:
        super().__init__()
        self.code: Callable[[], Any] = lambda: code
        self.details: Callable[[], Any] = lambda: details
        self.trailing_metadata: Callable[[], Any] = lambda: (
            () if pushback is None else (("grpc-retry-pushback-ms", pushback),)
        )


def plan(**fields: Any) -> CallPlan:
    return CallPlan(HedgeTimer(), 10.0, **({"is_repeatable": True, "is_hedged": True} | fields))


@pytest.mark.parametrize(
    ("error", "fields", "waits"),
    [
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="700"), {}, 0.7),
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, details="Try again in 800 ms; or"), {}, 0.8),
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="-1"), {}, None),
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, details="message larger than"), {}, None),
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="20000"), {}, None),
        (_Error(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="70"), {"is_repeatable": False}, 0.07),
        (_Error(grpc.StatusCode.UNAVAILABLE), {}, 0.01),
        (_Error(grpc.StatusCode.UNAVAILABLE), {"is_repeatable": False}, None),
        (_Error(grpc.StatusCode.INVALID_ARGUMENT), {}, None),
        (_Error(grpc.StatusCode.DEADLINE_EXCEEDED), {}, None),
    ],
)
def test_what_is_sent_again_and_when(error: _Error, fields: dict[str, Any], waits: float | None) -> None:
    call = plan(**fields)
    now = call.began_s
    assert call.starts(now)
    assert call.goes_on(error, now, 0) == (waits is not None)
    if waits is not None:
        assert waits - 1e-6 <= call.next_s - now <= 1.5 * waits + 0.02
        assert not call.starts(now)
        assert call.starts(call.next_s)


def test_hedges_begin_after_the_95th_percentile_and_are_few() -> None:
    timer = HedgeTimer()
    for place in range(320):
        timer.answered(0.05 if place % 100 < 8 else 0.01)
    assert timer.delay_s == 0.05
    hedged = 0
    for _ in range(100):
        call = CallPlan(timer, 10.0, is_repeatable=True, is_hedged=True)
        assert call.starts(call.began_s)
        assert not call.starts(call.began_s + 0.049)
        hedged += call.starts(call.began_s + 0.051)
    assert hedged == 50
    assert call.starts(call.began_s + 2.6)  # late: not limited
    writing = CallPlan(timer, 10.0, is_repeatable=True, is_hedged=False)
    assert writing.starts(writing.began_s)
    assert not writing.starts(writing.began_s + 9.9)


def test_the_first_answer_counts_and_the_other_attempt_is_cancelled() -> None:
    class Attempt:
        is_cancelled = False

        def __init__(self, reply: str | None) -> None:
            self.reply = reply

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            if self.reply is not None:
                callback(self)

        def exception(self) -> None:
            return None

        def result(self) -> str | None:
            return self.reply

        def cancel(self) -> None:
            self.is_cancelled = True

    attempts = [Attempt(None), Attempt("answer")]
    begun = iter(attempts)
    assert call_with_attempts(lambda _: next(begun), plan()) == "answer"
    assert [each.is_cancelled for each in attempts] == [True, False]


def test_addresses_of_several_servers() -> None:
    assert target_of("10.0.0.1:8700, 10.0.0.2:8700") == "ipv4:10.0.0.1:8700,10.0.0.2:8700"
    assert target_of("[::1]:1,[::2]:2") == "ipv6:[::1]:1,[::2]:2"
    assert target_of("dns:///re4:8700") == "dns:///re4:8700"
    assert target_of("re4:8700") == "re4:8700"
    assert not is_several("re4:8700")
    with pytest.raises(UsageError, match=r"'re4:8700' is not IP:PORT.*dns:///NAME:PORT"):
        target_of("10.0.0.1:8700,re4:8700")
    with pytest.raises(UsageError, match="mixes IPv4 and IPv6"):
        target_of("10.0.0.1:1,[::1]:1")


def test_the_service_of_the_configuration_is_the_one_of_the_contract() -> None:
    from re4.serving.client.several_servers import SERVICE_CONFIG

    name = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name
    assert SERVICE_CONFIG["healthCheckConfig"] == {"serviceName": name}
