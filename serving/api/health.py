"""The standard health service, `grpc.health.v1`, for a server with an orderly stop.

The library's own Watch never ends: it would delay every stop, and logs a stack trace when it is cut
off.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from re4.common.errors import RequestError
from re4.serving.api.decoding import decode
from re4.serving.api.first_message import FirstMessages

HEALTH_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Request: TypeAlias = health_pb2.HealthCheckRequest
Response: TypeAlias = health_pb2.HealthCheckResponse
Context: TypeAlias = "grpc.aio.ServicerContext[Request, Response]"


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

    def handlers(self, first_messages: FirstMessages) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
        """Return a handler for each method."""

        def with_request(method: Callable[[Request, Context], Awaitable[Any]]) -> Any:
            async def handler(_: object, context: Context) -> Any:
                try:
                    request = decode(Request, await first_messages.read(context))
                except RequestError as error:
                    return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                return await method(request, context)

            return handler

        to_bytes = Response.SerializeToString
        return {
            "Check": grpc.stream_unary_rpc_method_handler(
                with_request(self.Check), response_serializer=to_bytes
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(
                with_request(self.Watch), response_serializer=to_bytes
            ),
        }

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

    async def Check(self, request: Request, context: Context) -> Response:
        """Return the current status; NOT_FOUND for an unknown service."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return Response(status=self._status)

    async def Watch(self, request: Request, context: Context) -> None:
        """Send the status now and after every change, until the call ends or the server stops."""
        is_known = request.service in self._names
        sent: int | None = None
        while True:
            status = self._status if is_known else Response.SERVICE_UNKNOWN
            if status != sent:
                await context.write(Response(status=status))
                sent = status
                continue  # the status may have changed during the write
            async with self._changed:
                if self._is_ending:
                    return
                if is_known and self._status != sent:
                    continue
                await self._changed.wait()
