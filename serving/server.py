"""One process's gRPC server: the service, health, reflection, and a stop that loses no call in flight."""

import asyncio
import contextlib
from time import monotonic
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from re4.errors import ServerError
from serving.addresses import Address
from serving.live import Live
from serving.metrics import CallMetrics
from serving.service import SERVICE_NAME, RetrievalService
from serving.settings import ServerSettings

_QUIET_S: Final = 0.2
"""A server that was idle before and after so many seconds has nobody who calls steadily."""
_GAP_S: Final = 0.002
"""An idle time so long lies between two calls of those who do: whatever gRPC held was handed over."""
_LEAVE_S: Final = 1.0
"""How long a stop waits for each of the two."""
_REPLIES_S: Final = 0.5
"""From the last handler's return to the end of the stop, where a stream that never ends holds it up."""


class RetrievalServer:
    """Serves what is live on an address. Belongs to one event loop."""

    def __init__(self, live: Live, settings: ServerSettings) -> None:
        """Assemble the server; it listens from `start` on."""
        self._settings = settings
        self.metrics = CallMetrics()
        self._service = RetrievalService(live, settings, self.metrics)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),
            ]
        )
        self._server.add_generic_rpc_handlers((self._service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self, address: Address) -> Address:
        """Listen, and say NOT_SERVING until `set_serving`.

        Returns:
            The address with the port that was chosen where 0 was asked for.

        Raises:
            ServerError: the address cannot be listened on.
        """
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {address}: {error}") from None
        await self._server.start()
        return Address(host=address.host, port=port)

    async def set_serving(self) -> None:
        """Say SERVING to whoever asks for the server's health."""
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Say NOT_SERVING, let callers leave, take no further call, end with those in flight answered.

        A call that reaches gRPC while it tells its callers to go is not refused but cancelled. So whoever
        heeds the health service gets the time to stop calling, and the end comes between two calls.
        """
        await self._health.enter_graceful_shutdown()
        grace_s = self._settings.grace_s
        leave_s = min(_LEAVE_S, grace_s / 4)
        began_s = monotonic()
        for idle_s in (_QUIET_S, _GAP_S):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle_for(idle_s), leave_s)
                break
        stopping = asyncio.create_task(self._server.stop(max(0.0, began_s + grace_s - monotonic())))
        idle = asyncio.create_task(self._service.wait_idle())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        # Replies are on their way. What is left then is streams that never end: Watch of the health service.
        await asyncio.wait({stopping}, timeout=_REPLIES_S)
        if not stopping.done():
            await self._server.stop(None)
        await stopping
        idle.cancel()
        self._service.close()

    async def _idle_for(self, seconds: float) -> None:
        was_idle = False
        while not was_idle:
            await self._service.wait_idle()
            await asyncio.sleep(seconds)
            was_idle = self._service.is_idle
