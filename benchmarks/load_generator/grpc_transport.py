"""Connections to a gRPC server: each a channel of its own, with any number of calls in flight."""

import asyncio

import grpc

from re4.benchmarks.load_generator.call_errors import FailedCallError
from re4.serving.client.connection import Connection


class GrpcLink:
    """Channels that call one unary method."""

    def __init__(self, address: str, method: str, connection: Connection, num_connections: int) -> None:
        self._channels = [connection.aio_channel(address) for _ in range(num_connections)]
        self._methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(method) for channel in self._channels
        ]
        self._metadata = connection.metadata

    async def connect(self) -> None:
        """Make the connections; waits for a server that is not there."""
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        """As `Link.call`; the number chooses the channel."""
        method = self._methods[number % len(self._methods)]
        try:
            return await method(payload, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise FailedCallError(error.code().name, error.details() or "") from None

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels))
