"""Rejections far beyond saturation are paced, so that answers continue; lone ones are not delayed."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from in_process_server import Held, call, drive, health_of, serving

from re4.serving.api.server import RetrievalServer
from re4.serving.batching.rejection_pacing import SPACING_S, RejectionPacer
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot


class Clock:
    """Time that moves only by waits and by the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits: list[float] = []

    def block(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds


def test_rejections_in_a_row_are_paced_and_lone_ones_are_not_delayed() -> None:
    clock = Clock()
    pacer = RejectionPacer(lambda: clock.now_s, clock.block)
    pacer.pace()
    assert clock.waits == []
    for _ in range(3):
        clock.now_s += SPACING_S / 4
        pacer.pace()
    assert clock.waits == pytest.approx([0.75 * SPACING_S] * 3)
    clock.now_s += 1.0
    pacer.pace()
    assert len(clock.waits) == 3


def test_a_clock_that_jumps_back_blocks_no_longer_than_the_spacing() -> None:
    clock = Clock()
    pacer = RejectionPacer(lambda: clock.now_s, clock.block)
    pacer.pace()
    clock.now_s -= 50.0
    pacer.pace()
    assert clock.waits == [SPACING_S]


def test_health_is_answered_while_calls_are_rejected(snapshot: Snapshot) -> None:
    """Far more calls than fit into the queues: each ends, and the health service still answers."""
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        await server.set_serving()
        held.may_leave.set()
        await call(channel)  # from now on the server knows that a call costs something
        held.entered.clear()
        held.may_leave.clear()
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait)
        flood = [call(channel) for _ in range(1000)]
        assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        held.may_leave.set()
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert (await in_flight).items.strings
        codes = {error.code().name for error in outcomes if isinstance(error, grpc.aio.AioRpcError)}
        assert "RESOURCE_EXHAUSTED" in codes
        assert codes <= {"RESOURCE_EXHAUSTED", "CANCELLED"}
        assert len((await call(channel)).items.strings) == 5  # and it is back

    limits = Limits(max_concurrent_calls=2000)  # by default the client would keep most calls back
    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0, limits=limits)
