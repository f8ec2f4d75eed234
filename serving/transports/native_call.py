"""One call of the native transport: an HTTP/2 stream with a gRPC call."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from ngh2 import Connection
from ngh2.exceptions import NGH2Error

from re4.common.errors import RequestError
from re4.serving.auth.tokens import Metadata
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.transports.grpc_framing import (
    OK_TRAILERS,
    PREFIX_BYTES,
    RESPONSE_FIELDS,
    Fields,
    RequestHead,
    failed_response,
    framed,
    message_end,
    metadata_of,
    trailers_of,
    unpack,
)
from re4.serving.transports.message_deadlines import NO_MESSAGE, MessageDeadlines
from re4.serving.transports.transport import Method, StatusError

_LARGE_REPLY_BYTES: Final = 64 << 10
"""A larger reply is not copied behind its prefix."""
_MAX_WAITING_MESSAGES: Final = 4
"""A stream whose waiting messages are larger than so many of the largest ones is ended."""
_PASSED: Final = StatusError(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
_TOO_MANY: Final = "the messages of this call come faster than they are answered; wait for replies"


class CallConnection(Protocol):
    """The connection of a call, as far as the call needs it."""

    loop: asyncio.AbstractEventLoop
    max_message_bytes: int
    peer: str
    http2: Connection
    first_messages: "MessageDeadlines[NativeCall]"

    def flush(self) -> None:
        """Send what is ready, as far as the caller reads."""
        ...

    def flush_soon(self, call: "NativeCall") -> None:
        """Send the reply or status of a call with those of others."""
        ...

    def reset(self, call: "NativeCall") -> None:
        """End the stream of a call."""
        ...

    async def wait_until_sent(self, call: "NativeCall") -> None:
        """Return when the stream of a call may have room."""
        ...


class NativeCall:
    """A call. Belongs to its connection's event loop."""

    __slots__ = (
        "_buffer", "_connection", "_deadline_s", "_encoding", "_error", "_fields", "_has_headers",
        "_has_message", "_is_complete", "_is_half_closed", "_on_cancel", "_on_end", "_timer", "_waiter",
        "is_closed", "is_ended", "message", "method", "stream_id", "task",
    )  # fmt: skip

    def __init__(
        self,
        connection: CallConnection,
        stream_id: int,
        fields: Fields,
        head: RequestHead,
        method: Method,
    ) -> None:
        """Begin a call whose header fields have come.

        Args:
            connection: Of its stream.
            stream_id: Of its stream.
            fields: What the caller sent.
            head: The same, parsed.
            method: The called one.
        """
        self._connection = connection
        self._fields = fields
        self._encoding = head.encoding
        self._buffer: bytes | bytearray = b""
        # No exception: with its traceback it would refer to the message, and to this call in a cycle.
        self._error: tuple[StatusCode, str] | None = None
        self._has_headers = False
        self._has_message = False
        self._is_complete = False
        self._is_half_closed = False
        self._on_cancel: Callable[[], object] | None = None
        self._on_end: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_s is not None:
            self._deadline_s = connection.loop.time() + head.timeout_s
        self.is_ended = False
        """Whether it has its reply or status, or was cancelled."""
        self.is_closed = False
        """Whether the transport holds nothing of it any more."""
        self.message = b""
        self.method = method
        self.stream_id = stream_id
        self.task: asyncio.Task[None] | None = None

    @property
    def peer(self) -> str:
        """The address of the caller's connection."""
        return self._connection.peer

    @property
    def is_ready(self) -> bool:
        """Whether its first message is there."""
        return self._has_message

    @property
    def is_half_closed(self) -> bool:
        """Whether the caller sends no more."""
        return self._is_half_closed

    def metadata(self) -> Metadata:
        """Return the metadata that the caller sent."""
        return metadata_of(self._fields)

    def time_left(self) -> float | None:
        """Return the seconds until the caller's deadline; None where there is none."""
        return None if self._deadline_s is None else self._deadline_s - self._connection.loop.time()

    def watch_deadline(self) -> None:
        """End the call, or its unread reply, at the caller's deadline. Most calls end before this."""
        if self._deadline_s is not None and not self.is_closed:
            self._timer = self._connection.loop.call_at(self._deadline_s, self._expire)

    def receive(self, data: bytes, is_last: bool) -> None:
        """Take data of the stream; what follows the only message of a call is dropped."""
        if is_last:
            self._is_half_closed = True
        if self._is_complete or self.is_ended or self._error is not None:
            return
        if self._buffer:
            self._append(data)
        else:
            self._buffer = data
        if not self._has_message:
            self._take_message()
        if self._waiter is not None and self._is_next_known:
            self._wake()

    def _append(self, data: bytes) -> None:
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        self._buffer += data
        if len(self._buffer) > _MAX_WAITING_MESSAGES * self._connection.max_message_bytes + PREFIX_BYTES:
            self._fail_input(StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)

    def _take_message(self) -> None:
        """Take the next message from the buffer, where it is complete."""
        buffer, limit = self._buffer, self._connection.max_message_bytes
        try:
            end = message_end(buffer, limit)
            if end is None or len(buffer) < end:
                return
            self.message = unpack(buffer if len(buffer) == end else buffer[:end], self._encoding, limit)
        except StatusError as error:
            self._fail_input(error.code, error.details)
            return
        self._has_message = True
        self._is_complete = not self.method.is_streaming
        self._buffer = b"" if self._is_complete else buffer[end:]

    def _fail_input(self, code: StatusCode, details: str) -> None:
        self._error = code, details
        self._buffer = b""

    @property
    def _is_next_known(self) -> bool:
        return self._has_message or self._is_half_closed or self._error is not None

    async def read(self) -> bytes:
        """Return the call's only message, or the next one.

        Raises:
            RequestError: the caller ended the call without a message.
            StatusError: no complete message came within the time limit, or it cannot be used.
        """
        message = await self.next()
        if message is None:
            raise RequestError(NO_MESSAGE)
        return message

    async def next(self) -> bytes | None:
        """Return the next message of a call; None where the caller sends no more.

        Raises:
            StatusError: as for `read`.
        """
        if not self._has_message and self._error is None:
            self._take_message()
        if not self._is_next_known:
            deadlines = self._connection.first_messages
            deadlines.add(self)
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                deadlines.discard(self)
        if self._error is not None:
            raise StatusError(*self._error)
        if not self._has_message:
            return None
        self._has_message = False
        message, self.message = self.message, b""
        return message

    def end_late(self) -> None:
        """End the wait for a message: the time limit has passed."""
        details = self._connection.first_messages.late_details
        self._fail_input(StatusCode.DEADLINE_EXCEEDED, details)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def discard_message(self) -> None:
        """Release the memory of the message: the call will fail."""
        self.message = b""

    def on_end(self, callback: Callable[[], None], recount: Callable[[int], None]) -> None:
        """Run a callback when the transport holds the call and its reply no longer."""
        if self.is_closed:
            callback()
        else:
            self._on_end = callback

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Set the callback for a call that ends, by its caller or its deadline, before its answer."""
        self._on_cancel = callback

    async def write(self, message: bytes) -> None:
        """Send one message of a stream; return when the transport can take another."""
        if self.is_ended:
            raise asyncio.CancelledError
        connection = self._connection
        try:
            self._begin_response()
            connection.http2.send_data(self.stream_id, framed(message))
        except NGH2Error:
            raise asyncio.CancelledError from None
        connection.flush()
        while not self.is_ended and connection.http2.queued_body_size(self.stream_id):
            await connection.wait_until_sent(self)

    def _begin_response(self) -> None:
        if not self._has_headers:
            self._has_headers = True
            self._connection.http2.send_response(self.stream_id, RESPONSE_FIELDS)

    def respond(self, reply: bytes) -> None:
        """End the call with a reply."""
        if self.is_ended:
            return
        http2, stream_id = self._connection.http2, self.stream_id
        try:
            http2.send_response(stream_id, RESPONSE_FIELDS)
            if len(reply) < _LARGE_REPLY_BYTES:
                http2.send_data(stream_id, framed(reply))
            else:
                http2.send_data(stream_id, b"\0" + len(reply).to_bytes(4, "big"))
                http2.send_data(stream_id, reply)
            http2.send_trailers(stream_id, OK_TRAILERS)
        except NGH2Error:
            pass  # the connection has just failed
        self._answered()

    def end_stream(self) -> None:
        """End a stream of replies."""
        if self.is_ended:
            return
        with suppress(NGH2Error):
            self._begin_response()
            self._connection.http2.send_trailers(self.stream_id, OK_TRAILERS)
        self._answered()

    def fail(self, error: StatusError) -> None:
        """End the call with a status."""
        if self.is_ended:
            return
        with suppress(NGH2Error):
            if self._has_headers:
                self._connection.http2.send_trailers(self.stream_id, trailers_of(error))
            else:
                self._connection.http2.send_response(self.stream_id, failed_response(error), end_stream=True)
        self._answered()

    def _answered(self) -> None:
        self._end()
        self._connection.flush_soon(self)

    def _expire(self) -> None:
        """End the call: the caller's deadline has passed."""
        self._timer = None
        if self.is_ended:  # the reply is not read
            self._connection.reset(self)
        else:
            self.cancel(_PASSED)

    def cancel(self, status: StatusError | None = None) -> None:
        """End a call whose caller left, whose deadline passed, or whose server stops."""
        if self.is_ended:
            return
        on_cancel, task = self._on_cancel, self.task
        if status is not None:
            self.fail(status)
        self._end()
        if task is not None:
            task.cancel()
        if on_cancel is not None:
            on_cancel()

    def _end(self) -> None:
        self.is_ended = True
        # They refer to this call, and the cycle would keep the version until the garbage collector runs.
        self._on_cancel = None
        self.task = None
        self._buffer = b""

    def close(self) -> None:
        """Release everything: the stream is closed."""
        self.is_closed = True
        self.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_end is not None:
            self._on_end()
            self._on_end = None
