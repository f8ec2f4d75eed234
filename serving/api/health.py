"""The standard health service, `grpc.health.v1`, for a server with an orderly stop.

The library's own Watch never ends: it would delay every stop, and logs a stack trace when it is cut
off.
"""

import asyncio
from typing import Final, TypeAlias

from grpc_health.v1 import health_pb2

from re4.common.errors import RequestError
from re4.serving.protocol.decoding import decode
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.transports.transport import Method, ServerCall, StatusError

HEALTH_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Request: TypeAlias = health_pb2.HealthCheckRequest
Response: TypeAlias = health_pb2.HealthCheckResponse


class Health:
    """One status for all of a server's services. Belongs to one event loop."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Start with the status NOT_SERVING.

        Args:
            names: The known services; the empty name, for the whole server, is always known.
        """
        self._names = frozenset({"", *names})
        self._status = Response.NOT_SERVING
        self._is_ending = False
        self._changed = asyncio.Condition()

    def methods(self) -> list[Method]:
        """Return the methods of the service, for any transport."""
        return [
            Method(path=f"/{HEALTH_NAME}/Check", answer=self.Check),
            Method(path=f"/{HEALTH_NAME}/Watch", answer_stream=self.Watch),
        ]

    async def set(self, status: int) -> None:
        """Set the status, and send it to every Watch."""
        async with self._changed:
            self._status = status
            self._changed.notify_all()

    async def end_watches(self) -> None:
        """End every Watch after it has sent the last status."""
        async with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    async def Check(self, call: ServerCall) -> bytes:
        """Return the current status; NOT_FOUND for an unknown service."""
        request = await _request(call)
        if request.service not in self._names:
            raise StatusError(StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        reply: bytes = Response(status=self._status).SerializeToString()
        return reply

    async def Watch(self, call: ServerCall) -> None:
        """Send the status now and after every change, until the call ends or the server stops."""
        is_known = (await _request(call)).service in self._names
        sent: int | None = None
        while True:
            status = self._status if is_known else Response.SERVICE_UNKNOWN
            if status != sent:
                await call.write(Response(status=status).SerializeToString())
                sent = status
                continue  # the status may have changed during the write
            async with self._changed:
                if self._is_ending:
                    return
                if is_known and self._status != sent:
                    continue
                await self._changed.wait()


async def _request(call: ServerCall) -> Request:
    try:
        return decode(Request, await call.read())
    except RequestError as error:
        raise StatusError(StatusCode.INVALID_ARGUMENT, str(error)) from None
