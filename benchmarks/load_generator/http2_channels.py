"""gRPC calls over HTTP/2 by nghttp2 (package `ngh2`), in callbacks: a client that costs less than a server.

Calls that begin in one turn of the event loop leave in one write for each connection. A connection keeps
further calls back while it has as many as its server allows, as gRPC's own clients do.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import unquote

import grpc
from ngh2 import Configuration, Connection, Role, Setting
from ngh2.events import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
)
from ngh2.exceptions import NGH2Error

from re4.benchmarks.load_generator.outcome import (
    MISSED_DEADLINE,
    UNREACHABLE,
    UNREADABLE,
    Done,
    FailedCallError,
)

_CONFIGURATION: Final = Configuration(max_inbound_header_list_size=64 << 10)
_STREAM_WINDOW_BYTES: Final = 4 << 20
_CONNECTION_WINDOW_BYTES: Final = 64 << 20
_CANCEL: Final = 8
_PREFIX_BYTES: Final = 5
_RETRY_S: Final = 0.05
_EXPIRY_INTERVAL_S: Final = 0.01
_CODES: Final = {b"%d" % code.value[0]: code.name for code in grpc.StatusCode}


class _Call:
    __slots__ = ("chunks", "deadline_s", "details", "done", "is_done", "payload", "status", "stream_id")

    def __init__(self, payload: bytes, deadline_s: float, done: Done) -> None:
        self.payload = payload
        self.deadline_s = deadline_s
        self.done = done
        self.is_done = False
        self.chunks: list[bytes] = []
        self.status: bytes | None = None
        self.details = b""
        self.stream_id = 0

    def take(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        for name, value in fields:
            if name == b"grpc-status":
                self.status = value
            elif name == b"grpc-message":
                self.details = value

    def end(self, outcome: bytes | FailedCallError) -> None:
        if not self.is_done:
            self.is_done = True
            self.done(outcome)

    def closed(self) -> None:
        """End the call by what has come of its stream."""
        if self.is_done:
            return
        if self.status == b"0":
            data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
            is_whole = len(data) >= _PREFIX_BYTES and data[0] == 0
            self.end(data[_PREFIX_BYTES:] if is_whole else FailedCallError(UNREADABLE, "no plain message"))
        elif self.status is None:
            self.end(FailedCallError(UNREACHABLE, "the stream ended without a status"))
        else:
            code = _CODES.get(self.status, "UNKNOWN")
            self.end(FailedCallError(code, unquote(self.details.decode("latin-1"))))


class _Http2Connection(asyncio.Protocol):
    """One connection. Belongs to its channels' event loop."""

    def __init__(self, channels: "Http2Channels", place: int) -> None:
        self._channels = channels
        self._place = place
        self._http2 = Connection(Role.CLIENT, _CONFIGURATION)
        self._socket: asyncio.Transport | None = None
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._max_calls = 100
        self._has_goaway = False
        self.is_ready = asyncio.get_running_loop().create_future()
        """Done when the server's settings have come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        settings = {Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES}
        self._http2.initiate_connection(settings)
        self._http2.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._socket = None
        if not self.is_ready.done():
            self.is_ready.set_exception(ConnectionError("the server closed the connection"))
        self._channels.lost(self._place, self)
        calls = [*self._calls.values(), *self._waiting]
        self._calls.clear()
        self._waiting.clear()
        for call in calls:
            call.end(FailedCallError(UNREACHABLE, str(error or "the server closed the connection")))

    def data_received(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
        except NGH2Error:
            self.abort()
            return
        self._handle_events()
        self._channels.dirty[self] = None
        self._channels.flush()

    @property
    def is_usable(self) -> bool:
        """Whether the server takes further calls of this connection."""
        return self._socket is not None and not self._has_goaway

    def begin(self, call: _Call) -> None:
        if len(self._calls) < self._max_calls:
            self._send(call)
        else:
            self._waiting.append(call)

    def expire(self, call: _Call) -> None:
        """End a call at its deadline."""
        call.end(FailedCallError(MISSED_DEADLINE, "no reply before the deadline"))
        if call.stream_id in self._calls:
            with suppress(NGH2Error):
                self._http2.reset_stream(call.stream_id, _CANCEL)
            self._channels.dirty[self] = None

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def flush(self) -> None:
        if self._socket is None or self._socket.is_closing():
            return
        try:
            data = self._http2.data_to_send()
        except NGH2Error:
            self.abort()
            return
        if data:
            self._socket.write(data)
        self._handle_events()

    def _send(self, call: _Call) -> None:
        left_ms = max(1, round(1e3 * (call.deadline_s - time.monotonic())))
        fields = [*self._channels.fields, (b"grpc-timeout", b"%dm" % left_ms)]
        try:
            call.stream_id = self._http2.send_request(fields)
            self._http2.send_data(call.stream_id, call.payload, end_stream=True)
        except NGH2Error as error:
            call.end(FailedCallError(UNREACHABLE, str(error)))
            return
        self._calls[call.stream_id] = call
        self._channels.dirty[self] = None

    def _handle_events(self) -> None:
        calls = self._calls
        for event in self._http2.events():
            if isinstance(event, DataReceived):
                if event.data and (call := calls.get(event.stream_id)) is not None:
                    call.chunks.append(event.data)
            elif isinstance(event, ResponseReceived | TrailersReceived):
                if (call := calls.get(event.stream_id)) is not None:
                    call.take(event.headers)
            elif isinstance(event, StreamClosed):
                if (call := calls.pop(event.stream_id, None)) is not None:
                    call.closed()
                while self._waiting and len(calls) < self._max_calls:
                    if not (waiting := self._waiting.popleft()).is_done:
                        self._send(waiting)
            elif isinstance(event, SettingsReceived):
                limits = self._http2.remote_settings
                self._max_calls = min(limits.get(Setting.MAX_CONCURRENT_STREAMS, 100), 1 << 20)
                if not self.is_ready.done():
                    self.is_ready.set_result(None)
            elif isinstance(event, GoAwayReceived):
                self._has_goaway = True
                self._channels.lost(self._place, self)
            elif isinstance(event, ConnectionClosed) and self._socket is not None:
                self._socket.close()


class Http2Channels:
    """Connections of one process to one server. They belong to an event loop."""

    def __init__(
        self, address: str, method: str, metadata: Sequence[tuple[str, str]], num_connections: int
    ) -> None:
        """Prepare them; `connect` makes them.

        Args:
            address: Host and port.
            method: Path of the method.
            metadata: Sent with each call.
            num_connections: How many.
        """
        self._host, _, self._port = address.rpartition(":")
        self._num_connections = num_connections
        self.fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", address.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"re4-bench"),
            *((name.encode(), value.encode()) for name, value in metadata),
        ]
        self.dirty: dict[_Http2Connection, None] = {}
        """Connections with something to send."""
        self._connections: list[_Http2Connection | None] = [None] * num_connections
        self._connecting: set[asyncio.Task[None]] = set()
        self._in_flight: deque[tuple[_Http2Connection, _Call]] = deque()
        """In the order of their beginning, and so of their deadlines, where all have the same time limit."""
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def connect(self) -> None:
        """Make the connections; wait for a server that does not listen yet."""
        await asyncio.gather(*(self._connect(place) for place in range(self._num_connections)))

    def begin(self, number: int, payload: bytes, timeout_s: float, done: Done) -> None:
        """Begin a call; `flush` sends it.

        Args:
            number: Chooses the connection.
            payload: The request.
            timeout_s: Seconds until its deadline.
            done: Takes the outcome, also before this returns.
        """
        connection = self._connections[number % self._num_connections]
        if connection is None or not connection.is_usable:
            connection = next((each for each in self._connections if each and each.is_usable), None)
        if connection is None:
            done(FailedCallError(UNREACHABLE, f"no connection to {self._host}:{self._port}"))
            return
        framed = b"\0" + len(payload).to_bytes(4, "big") + payload
        call = _Call(framed, time.monotonic() + timeout_s, done)
        self._in_flight.append((connection, call))
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(_EXPIRY_INTERVAL_S, self._expire)
        connection.begin(call)

    def flush(self) -> None:
        """Send the calls that have begun."""
        while self.dirty:
            connections, self.dirty = self.dirty, {}
            for connection in connections:
                connection.flush()

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        """Return the reply to a request, or raise FailedCallError; the number chooses the connection."""
        future: asyncio.Future[bytes | FailedCallError] = asyncio.get_running_loop().create_future()
        self.begin(number, payload, timeout_s, future.set_result)
        self.flush()
        outcome = await future
        if isinstance(outcome, FailedCallError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Close the connections."""
        self._is_closed = True
        for task in self._connecting:
            task.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        for connection in self._connections:
            if connection is not None:
                connection.abort()
        await asyncio.sleep(0)

    def lost(self, place: int, connection: _Http2Connection) -> None:
        """Make a new connection in place of one that ends."""
        self.dirty.pop(connection, None)
        if self._connections[place] is connection and not self._is_closed:
            self._connections[place] = None
            task = asyncio.get_running_loop().create_task(self._connect(place))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, place: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_connection(
                    lambda: _Http2Connection(self, place), self._host.strip("[]"), int(self._port)
                )
                await connection.is_ready
            except OSError:
                await asyncio.sleep(_RETRY_S)
            else:
                self._connections[place] = connection
                return

    def _expire(self) -> None:
        now_s, calls = time.monotonic(), self._in_flight
        while calls and (calls[0][1].is_done or calls[0][1].deadline_s <= now_s):
            connection, call = calls.popleft()
            if not call.is_done:
                connection.expire(call)
        self.flush()
        self._expiry = None
        if calls:
            self._expiry = asyncio.get_running_loop().call_later(_EXPIRY_INTERVAL_S, self._expire)
