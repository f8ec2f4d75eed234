"""The standard health service, `grpc.health.v1`, for a server that stops in good order. Knows no other.

The library's own Watch never ends: it would hold every stop up, and leaves a stack trace when it is cut off.
"""

import asyncio
from typing import Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HEALTH_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Request: TypeAlias = health_pb2.HealthCheckRequest
Response: TypeAlias = health_pb2.HealthCheckResponse
Context: TypeAlias = "grpc.aio.ServicerContext[Request, Response]"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """One status for all of a server's names; NOT_SERVING until it is set. Belongs to one event loop."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Be ready to answer.

        Args:
            names: The services that are known; the empty name, for the server as a whole, always is.
        """
        self._names = frozenset({"", *names})
        self._status = Response.NOT_SERVING
        self._is_over = False
        self._changed = asyncio.Condition()

    async def set(self, status: int) -> None:
        """Say this from now on, to those who watch as well."""
        async with self._changed:
            self._status = status
            self._changed.notify_all()

    async def let_go(self) -> None:
        """End every Watch, once it has said the last status."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def Check(self, request: Request, context: Context) -> Response:
        """The status now; NOT_FOUND for a service of another name."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return Response(status=self._status)

    async def Watch(self, request: Request, context: Context) -> None:
        """The status now and after every change, until the caller leaves or the server stops."""
        is_known = request.service in self._names
        said: int | None = None
        while True:
            status = self._status if is_known else Response.SERVICE_UNKNOWN
            if status != said:
                await context.write(Response(status=status))
                said = status
                continue  # it may have changed while it was written
            async with self._changed:
                if self._is_over:
                    return
                if is_known and self._status != said:
                    continue
                await self._changed.wait()
