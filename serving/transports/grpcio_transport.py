"""The transport of gRPC's own library: every feature, and a task of the event loop for each call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import grpc

from re4.common.errors import ServerError
from re4.serving.auth.certificates import CertificateReloader
from re4.serving.auth.tokens import Metadata
from re4.serving.host.addresses import Address
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.first_message import FirstMessages
from re4.serving.transports.transport import MIN_PING_INTERVAL_S, Method, StatusError

_REPLIES_S: Final = 0.5
"""From the last handler's return to the end of the stop, where an open stream delays it."""

_QUEUE_OPTIONS: Final = (
    ("grpc.server.max_pending_requests", 256),
    ("grpc.server.max_pending_requests_hard_limit", 512),
    ("grpc.server_max_unrequested_time_in_server", 1),
)
"""How many calls of one method gRPC's core may hold before they are accepted: above the first
number it ends some, above the second all, and also those that waited a second. Enough for a burst
that an idle server reads at once. Each method has its own queue: those of the health service and of
Info stay empty."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcioTransport:
    """A `grpc.aio` server."""

    def __init__(
        self,
        methods: Sequence[Method],
        limits: Limits,
        *,
        certificates: CertificateReloader | None = None,
    ) -> None:
        """Assemble the server.

        Args:
            methods: What it answers.
            limits: Of messages and connections.
            certificates: For TLS; None for none.
        """
        self.first_messages = FirstMessages(limits.message_timeout_s)
        self._certificates = certificates
        age_s = limits.max_connection_age_s
        self._server = grpc.aio.server(
            options=[
                *(() if age_s is None else [("grpc.max_connection_age_ms", round(1000 * age_s))]),
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Calls that were reset count until the event loop has accepted them, so that one
                # connection cannot fill the queue that all connections share.
                ("grpc.max_concurrent_streams", limits.max_concurrent_calls),
                ("grpc.so_reuseport", 1),
                # Clients of several servers ping them; by default gRPC ends connections with such clients.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000 * MIN_PING_INTERVAL_S),
                *_QUEUE_OPTIONS,
            ]
        )
        for service, handlers in self._handlers(methods).items():
            self._server.add_registered_method_handlers(service, handlers)

    async def start(self, address: Address) -> int:
        """Listen, and return the port."""
        try:
            if self._certificates is None:
                port = self._server.add_insecure_port(str(address))
            else:
                port = self._server.add_secure_port(str(address), self._certificates.credentials())
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {address}: {error}") from None
        await self._server.start()
        return port

    async def stop(self, grace_s: float, idle: Awaitable[None]) -> None:
        """Tell clients by GOAWAY to send no further call, wait for the calls in flight, and close."""
        stopping = asyncio.create_task(self._server.stop(grace_s))
        idling = asyncio.ensure_future(idle)
        await asyncio.wait({stopping, idling}, return_when=asyncio.FIRST_COMPLETED)
        # The last replies are being sent. Only a stream that a caller keeps open takes longer.
        await asyncio.wait({stopping}, timeout=_REPLIES_S)
        if not stopping.done():
            await self._server.stop(None)
        await stopping
        idling.cancel()

    def _handlers(self, methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
        """Return a handler for each method, by service and name."""
        by_service: dict[str, dict[str, Any]] = {}
        for method in methods:
            _, service, name = method.path.split("/")
            by_service.setdefault(service, {})[name] = self._handler(method)
        return by_service

    def _handler(self, method: Method) -> Any:
        """Return the handler of a method, which reads its message itself."""
        answer: Callable[[_Call], Awaitable[Any]] | None = method.answer or method.answer_stream
        assert answer is not None

        async def handle(_: object, context: Context) -> Any:
            call = _Call(context, self.first_messages)
            try:
                return await answer(call)
            except StatusError as error:
                status = grpc.StatusCode[error.code.name], error.details, error.metadata
            # Outside of the block: gRPC keeps the raised error, and with it the error that was handled
            # before, whose frames refer to the version.
            if call.aborted is not None:
                raise call.aborted  # gRPC accepts no other error of an ended call
            return await context.abort(*status)

        if method.answer is None:
            return grpc.stream_stream_rpc_method_handler(handle)
        return grpc.stream_unary_rpc_method_handler(handle)


class _Call:
    __slots__ = ("_context", "_first_messages", "aborted")

    def __init__(self, context: Context, first_messages: FirstMessages) -> None:
        self._context = context
        self._first_messages = first_messages
        self.aborted: grpc.aio.AbortError | None = None
        """Whether the time limit for its message has ended it."""

    @property
    def peer(self) -> str:
        peer: str = self._context.peer()
        return peer

    def metadata(self) -> Metadata:
        return self._context.invocation_metadata() or ()

    def time_left(self) -> float | None:
        return self._context.time_remaining()

    async def read(self) -> bytes:
        try:
            return await self._first_messages.read(self._context)
        except grpc.aio.AbortError as error:
            raise self._late(error) from None

    async def next(self) -> bytes | None:
        try:
            return await self._first_messages.next(self._context)
        except grpc.aio.AbortError as error:
            raise self._late(error) from None

    def _late(self, error: grpc.aio.AbortError) -> StatusError:
        self.aborted = error
        return StatusError(StatusCode.DEADLINE_EXCEEDED, self._first_messages.late_details)

    async def write(self, message: bytes) -> None:
        await self._context.write(message)

    def on_end(self, callback: Callable[[], None], recount: Callable[[int], None]) -> None:
        self._context.add_done_callback(lambda _: callback())  # type: ignore[arg-type]  # inexact stub
