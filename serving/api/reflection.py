"""gRPC reflection, which needs a token where calls need one."""

from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any, Final

from re4.common.errors import Re4Error
from re4.serving.auth.authenticator import Authenticator
from re4.serving.protocol.decoding import decode
from re4.serving.protocol.status_codes import status_of
from re4.serving.transports.transport import Method, ServerCall, StatusError

REFLECTION_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"


def reflection_methods(services: Sequence[str], authenticator: Authenticator | None) -> list[Method]:
    """Return the methods of the reflection service, for any transport.

    Args:
        services: Full names of the services to describe, beside reflection itself.
        authenticator: Checks tokens; None where calls need none.
    """

    @cache
    def servicer() -> Any:
        """Return the answers of gRPC's own library, which takes 5 MB from its first use on."""
        from grpc_reflection.v1alpha import reflection

        return reflection.aio.ReflectionServicer((*services, REFLECTION_NAME))

    async def requests(call: ServerCall) -> AsyncIterator[Any]:
        from grpc_reflection.v1alpha import reflection_pb2

        while (data := await call.next()) is not None:
            yield decode(reflection_pb2.ServerReflectionRequest, data)

    async def info(call: ServerCall) -> None:
        try:
            if authenticator is not None:
                authenticator.identify(call.metadata())
            async for reply in servicer().ServerReflectionInfo(requests(call), None):
                await call.write(reply.SerializeToString())
        except Re4Error as error:
            raise StatusError(status_of(type(error)), str(error)) from None

    return [Method(path=f"/{REFLECTION_NAME}/ServerReflectionInfo", answer_stream=info)]
