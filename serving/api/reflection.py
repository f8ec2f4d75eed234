"""gRPC reflection, which needs a token where calls need one."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from re4.common.errors import UnauthenticatedError
from re4.serving.auth.authenticator import Authenticator
from re4.serving.protocol.status_codes import status_of


def add_reflection(
    server: grpc.aio.Server, services: Sequence[str], authenticator: Authenticator | None
) -> None:
    """Add reflection for a server's services.

    Args:
        server: The server.
        services: Full names.
        authenticator: Checks tokens; None where calls need none.
    """
    names = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(
        names, server if authenticator is None else _GuardedServer(server, authenticator)
    )


class _GuardedServer:
    """A server to which handlers are added so that they answer only callers with a token."""

    def __init__(self, server: grpc.aio.Server, authenticator: Authenticator) -> None:
        self._server = server
        self._authenticator = authenticator

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(
            [_GuardedHandler(each, self._authenticator) for each in handlers]
        )

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Do nothing: such handlers would be called without a check of the metadata."""


class _GuardedHandler(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler, authenticator: Authenticator) -> None:
        self._handler = handler
        self._authenticator = authenticator

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        found = self._handler.service(handler_call_details)
        if found is None:
            return None
        try:
            self._authenticator.identify(handler_call_details.invocation_metadata or ())
        except UnauthenticatedError as error:
            return grpc.stream_stream_rpc_method_handler(_reject(error))
        return found


def _reject(error: UnauthenticatedError) -> Callable[[Any, Any], Awaitable[None]]:
    code, details = status_of(type(error)), str(error)

    async def reject(_: Any, context: Any) -> None:
        await context.abort(code, details)

    return reject
