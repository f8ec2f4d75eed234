"""gRPC reflection, which needs a token where calls need one."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from re4.common.errors import Re4Error
from re4.serving.api.decoding import decode
from re4.serving.auth.authenticator import Authenticator
from re4.serving.protocol.status_codes import status_of
from re4.serving.transports.first_message import Context, FirstMessages

REFLECTION_NAME: Final[str] = reflection.SERVICE_NAME
Request = reflection_pb2.ServerReflectionRequest


def reflection_handlers(
    services: Sequence[str], first_messages: FirstMessages, authenticator: Authenticator | None
) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    """Return a handler for each method of the reflection service.

    Args:
        services: Full names of the services to describe, beside reflection itself.
        first_messages: Limits the time of each message, not only of the first one.
        authenticator: Checks tokens; None where calls need none.
    """
    servicer = reflection.aio.ReflectionServicer((*services, REFLECTION_NAME))

    async def requests(context: Context) -> AsyncIterator[Any]:
        while (data := await first_messages.next(context)) is not None:
            yield decode(Request, data)

    async def info(_: object, context: Context) -> None:
        try:
            if authenticator is not None:
                authenticator.identify(context.invocation_metadata() or ())
            async for reply in servicer.ServerReflectionInfo(requests(context), context):
                await context.write(reply)
        except Re4Error as error:
            await context.abort(status_of(type(error)), str(error))

    to_bytes = reflection_pb2.ServerReflectionResponse.SerializeToString
    return {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(info, response_serializer=to_bytes)}
