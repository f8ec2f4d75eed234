"""Transports: how a request's bytes reach a server of some kind, and what a reply's bytes hold.

A worker knows one interface, so every server is put under the same loads and measured by the same
arithmetic.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, NamedTuple, Protocol, runtime_checkable

import grpc
from google.protobuf.message import DecodeError

from re4.benchmarks.load_generator.outcome import UNREADABLE, Done, FailedCallError
from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2
from re4.serving.client.connection import PLAIN, Connection
from re4.serving.client.several_servers import is_several

METHOD: Final = "/re4.v1.Retrieval/Retrieve"
CALL_TIMEOUT_S: Final = 10.0
STAGES: Final = ("queue", "gather", "encode", "search", "merge")


class ParsedReply(NamedTuple):
    """Facts of the call that a reply holds."""

    version: str = ""
    """The bundle version that answered; empty where replies do not name it."""
    stages_us: Sequence[int] | None = None
    """Times of `STAGES`, where replies have them."""
    batch_size: int | None = None


class Channels(Protocol):
    """Connections of one process to one server. They belong to an event loop."""

    async def connect(self) -> None:
        """Make the connections; wait for a server that does not listen yet."""

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        """Return the reply to a request, or raise FailedCallError; the number may choose the connection."""

    async def close(self) -> None:
        """Close the connections."""


@runtime_checkable
class BatchChannels(Channels, Protocol):
    """Channels that send calls together, and take no task for a call."""

    def begin(self, number: int, payload: bytes, timeout_s: float, done: Done) -> None:
        """Begin a call, as `call` does; `done` takes the outcome, also before this returns."""

    def flush(self) -> None:
        """Send the calls that have begun."""


class Transport(Protocol):
    """How calls reach one kind of server. Plain values, so that it can be sent to a worker process."""

    @property
    def parse(self) -> Callable[[bytes], ParsedReply]:
        """Read a reply."""

    def open(self, address: str, num_connections: int) -> Channels:
        """Return channels to a server."""


def parse_nothing(data: bytes) -> ParsedReply:
    """Leave a reply unread."""
    return ParsedReply()


def parse_retrieve_reply(data: bytes) -> ParsedReply:
    """Parse a reply of our own contract."""
    try:
        reply = retrieval_pb2.RetrieveReply.FromString(data)
    except DecodeError as error:
        raise FailedCallError(UNREADABLE, str(error)) from None
    times = reply.stage_times
    return ParsedReply(
        version=reply.version,
        stages_us=(times.queue_us, times.gather_us, times.encode_us, times.search_us, times.merge_us),
        batch_size=times.batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class GrpcTransport:
    """A unary gRPC method; by default `Retrieve` of our own contract, in plain text."""

    method: str = METHOD
    connection: Connection = PLAIN
    """TLS and token."""
    parse: Callable[[bytes], ParsedReply] = parse_retrieve_reply

    def open(self, address: str, num_connections: int) -> Channels:
        """Return channels to a server; any number of calls may be in flight on each.

        They are gRPC's own with TLS, and where the package of the faster ones is not installed.
        """
        is_plain = not self.connection.is_tls and not is_several(address)
        if is_plain and find_spec("ngh2") is not None:
            from re4.benchmarks.load_generator.http2_channels import Http2Channels

            return Http2Channels(address, self.method, self.connection.metadata, num_connections)
        return _GrpcChannels(address, self, num_connections)


RETRIEVE: Final = GrpcTransport()


class _GrpcChannels:
    def __init__(self, address: str, transport: GrpcTransport, num_connections: int) -> None:
        self._channels = [transport.connection.aio_channel(address) for _ in range(num_connections)]
        self._methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(transport.method) for channel in self._channels
        ]
        self._metadata = transport.connection.metadata

    async def connect(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        method = self._methods[number % len(self._methods)]
        try:
            return await method(payload, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise FailedCallError(error.code().name, error.details() or "") from None

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def call_in_turn(
    transport: Transport, address: str, payloads: Sequence[bytes], *, connect_timeout_s: float
) -> list[bytes]:
    """Return the replies to some requests, sent over one connection."""
    channels = transport.open(address, 1)
    try:
        await asyncio.wait_for(channels.connect(), connect_timeout_s)
        return [await channels.call(0, payload, CALL_TIMEOUT_S) for payload in payloads]
    finally:
        await channels.close()


def call_all(transport: Transport, address: str, payloads: Sequence[bytes]) -> list[bytes]:
    """Return the replies to some requests."""
    try:
        return asyncio.run(call_in_turn(transport, address, payloads, connect_timeout_s=CALL_TIMEOUT_S))
    except (FailedCallError, TimeoutError) as error:
        raise ServerError(f"{address} does not answer the requests of this benchmark: {error}") from None


def median_reply(replies: Sequence[bytes]) -> bytes:
    """Return the reply of median size, for a null server to send."""
    return sorted(replies, key=len)[len(replies) // 2]
