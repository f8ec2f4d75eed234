"""What the client calls: how a request's bytes reach a server of some kind, and what a reply's bytes say.

The runner knows one interface, so that every server is put under the same loads and judged by the same
arithmetic: ours over its gRPC contract, and others over gRPC methods of their own or over HTTP. A callee is
plain values, which can be sent to a worker process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

from google.protobuf.message import DecodeError

from re4.benchmarks.load_generator.call_errors import UNREADABLE, FailedCallError
from re4.protos.v1 import retrieval_pb2
from re4.serving.client.connection import PLAIN, Connection

METHOD: Final = "/re4.v1.Retrieval/Retrieve"
STAGES: Final = ("queue", "gather", "encode", "search", "merge")


class Reading(NamedTuple):
    """What a reply says about itself."""

    version: str = ""
    """The bundle version that answered; empty where replies do not say."""
    stages_us: Sequence[int] | None = None
    """Times of `STAGES`, where replies have them."""
    batch_size: int | None = None


class Link(Protocol):
    """Connections of one process to one server. Belongs to an event loop."""

    async def connect(self) -> None:
        """Make the connections; waits for a server that is not there."""

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        """Send a request and give the reply.

        Args:
            number: Of the call; deals calls to connections.
            payload: The request.
            timeout_s: Seconds to wait for the reply.

        Raises:
            FailedCallError: there is no answer.
        """

    async def close(self) -> None:
        """Close the connections."""


def read_nothing(data: bytes) -> Reading:
    """For replies that say nothing about themselves, or that nobody reads while measuring."""
    return Reading()


def read_retrieve_reply(data: bytes) -> Reading:
    """Read a reply of our own contract.

    Raises:
        FailedCallError: it is none.
    """
    try:
        reply = retrieval_pb2.RetrieveReply.FromString(data)
    except DecodeError as error:
        raise FailedCallError(UNREADABLE, str(error)) from None
    times = reply.stage_times
    return Reading(
        version=reply.version,
        stages_us=(times.queue_us, times.gather_us, times.encode_us, times.search_us, times.merge_us),
        batch_size=times.batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class GrpcCallee:
    """A unary gRPC method."""

    method: str = METHOD
    """Its path."""
    connection: Connection = PLAIN
    """TLS and token."""
    read: Callable[[bytes], Reading] = read_retrieve_reply

    def link(self, address: str, num_connections: int) -> Link:
        """Connections to a server; one call after the other may be in flight on each."""
        from re4.benchmarks.load_generator.grpc_transport import GrpcLink

        return GrpcLink(address, self.method, self.connection, num_connections)


@dataclass(frozen=True, kw_only=True)
class HttpCallee:
    """A path that takes POST requests with JSON bodies, over HTTP/1.1 connections that stay open."""

    path: str
    read: Callable[[bytes], Reading] = read_nothing

    def link(self, address: str, num_connections: int) -> Link:
        """Connections to a server; more are made while all of them wait for replies."""
        from re4.benchmarks.load_generator.http_transport import HttpLink

        return HttpLink(address, self.path, num_connections)


Callee: TypeAlias = GrpcCallee | HttpCallee

OURS: Final = GrpcCallee()
"""`Retrieve` of a server of ours, in plain text."""
