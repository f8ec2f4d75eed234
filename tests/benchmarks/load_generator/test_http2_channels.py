"""The HTTP/2 client of the load generator: limits of the server, notices of its end, calls that fail."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from running_server import DEADLINE_S

from re4.benchmarks.load_generator.http2_channels import Http2Channels
from re4.benchmarks.load_generator.outcome import FailedCallError
from re4.benchmarks.load_generator.transport import BatchChannels
from re4.serving.host.addresses import Address
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.native_transport import NativeTransport
from re4.serving.transports.transport import Method, ServerCall, StatusError, WholeCall

PATH = "/test.Echo/Echo"


class Echo:
    """Answers with the message, in reverse order of arrival; "no" gets an error, "never" nothing."""

    def __init__(self) -> None:
        self.most_at_once = 0

    async def one(self, call: ServerCall) -> bytes:
        return await call.read()

    def many(self, calls: Sequence[WholeCall]) -> None:
        self.most_at_once = max(self.most_at_once, len(calls))
        for call in reversed(calls):
            if call.message == b"no":
                call.fail(StatusError(StatusCode.NOT_FOUND, "50 % of that: é"))
            elif call.message != b"never":
                call.respond(call.message)


def drive(test: Callable[[NativeTransport, Http2Channels, Echo], Awaitable[None]], **limits: int) -> None:
    async def main() -> None:
        echo = Echo()
        method = Method(path=PATH, answer=echo.one, answer_many=echo.many)
        server = NativeTransport([method], Limits(**limits))
        port = await server.start(Address(host="127.0.0.1", port=0))
        channels = Http2Channels(f"127.0.0.1:{port}", PATH, (), 1)
        assert isinstance(channels, BatchChannels)
        await channels.connect()
        try:
            await test(server, channels, echo)
        finally:
            await channels.close()
            await server.stop(0.0, asyncio.sleep(0))

    asyncio.run(main())


def test_calls_beyond_the_limit_of_the_server_wait_for_the_others() -> None:
    async def test(server: NativeTransport, channels: Http2Channels, echo: Echo) -> None:
        payloads = [b"%d" % number * 40_000 for number in range(9)]
        calls = [channels.call(number, each, DEADLINE_S) for number, each in enumerate(payloads)]
        assert await asyncio.gather(*calls) == payloads
        assert 1 <= echo.most_at_once <= 2

    drive(test, max_concurrent_calls=2)


def test_a_connection_that_the_server_ends_is_replaced_and_its_calls_are_answered() -> None:
    async def test(server: NativeTransport, channels: Http2Channels, echo: Echo) -> None:
        (first,) = server._connections
        first.begin_drain()
        while channels._connections[0] is None or first in server._connections:
            assert await channels.call(0, b"x", DEADLINE_S) == b"x" if channels._connections[0] else True
            await asyncio.sleep(0)
        assert await channels.call(0, b"y", DEADLINE_S) == b"y"
        (second,) = server._connections
        assert second is not first

    drive(test)


def test_statuses_deadlines_and_lost_connections_are_failures() -> None:
    async def test(server: NativeTransport, channels: Http2Channels, echo: Echo) -> None:
        with pytest.raises(FailedCallError, match="NOT_FOUND: 50 % of that: é"):
            await channels.call(0, b"no", DEADLINE_S)
        with pytest.raises(FailedCallError, match="DEADLINE_EXCEEDED"):
            await channels.call(0, b"never", 0.02)
        lost = asyncio.ensure_future(channels.call(0, b"never", DEADLINE_S))
        await channels.call(0, b"x", DEADLINE_S)
        for connection in list(server._connections):
            connection.abort()
        with pytest.raises(FailedCallError, match="UNAVAILABLE"):
            await lost

    drive(test)
