"""One connection of the native transport: HTTP/2 by nghttp2 (package `ngh2`), on a transport of asyncio.

nghttp2 keeps the protocol's own limits: frames, header fields, CONTINUATION, resets, acknowledgements
that are not read. This module limits the rest: control frames, pings, data that is not read, the time
of the preface.
"""

import asyncio
import logging
import ssl
from contextlib import suppress
from ipaddress import ip_address
from random import uniform
from typing import Final, Protocol
from urllib.parse import quote

from ngh2 import Configuration, Connection, Role, Setting
from ngh2.events import (
    ConnectionClosed,
    DataReceived,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
    WindowUpdated,
)
from ngh2.exceptions import NGH2Error

from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.grpc_framing import (
    MAX_METADATA_BYTES,
    NotGrpcError,
    failed_response,
    parse_head,
    parse_timeout,
)
from re4.serving.transports.message_deadlines import MessageDeadlines
from re4.serving.transports.native_call import NativeCall
from re4.serving.transports.tls import HTTP2
from re4.serving.transports.transport import (
    MIN_PING_INTERVAL_S,
    EarlyRejector,
    Method,
    Rejection,
    StatusError,
)

_CONFIGURATION: Final = Configuration(
    max_inbound_header_list_size=64 << 10,
    # A caller with a short deadline resets its calls under overload: a thousand a second cost 2 % of a core.
    stream_reset_rate_limit=(1000, 1000),
)
_STREAM_WINDOW_BYTES: Final = 1 << 20
_CONNECTION_WINDOW_BYTES: Final = 4 << 20
_WRITE_BYTES: Final = 256 << 10
"""Most bytes that a connection takes from nghttp2 at once. With the buffer of asyncio, a caller that does
not read occupies so much beside its replies."""
_UNREAD_S: Final = 60.0
"""Time in which a caller must read what was sent; its connection is not read meanwhile."""

_MAX_CONTROL_FRAMES: Final = 10_000
_CONTROL_FRAMES_PER_CALL: Final = 16
"""A connection may send so many control frames and empty DATA frames, and so many more for each call."""

_MAX_PING_STRIKES: Final = 2
_IDLE_PING_INTERVAL_S: Final = 7200.0
"""Without calls. A ping that comes earlier after the one before is a strike, unless something was sent
between. These are the rules of gRPC's own library (gRFC A8)."""
_LONG_AGO_S: Final = float("-inf")
_TOO_MANY_PINGS: Final = b"too_many_pings"
"""Clients of gRPC double the interval of their pings."""

_INTERNAL_ERROR, _ENHANCE_YOUR_CALM, _NO_ERROR, _CANCEL = 2, 11, 0, 8
_NOTICE_S: Final = 1.0
"""Time in which the client of an old connection must answer the ping behind the notice."""
_DRAIN_PING: Final = b"draining"
_NOT_FOUND: Final = failed_response(StatusError(StatusCode.UNIMPLEMENTED, "Method not found!"))
_LATE: Final = failed_response(StatusError(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

_log = logging.getLogger(__name__)


class ConnectionOwner(Protocol):
    """The server of a connection, as far as the connection needs it."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    methods: dict[bytes, Method]
    first_messages: MessageDeadlines[NativeCall]
    prefaces: "MessageDeadlines[NativeConnection]"

    def opened(self, connection: "NativeConnection") -> None:
        """Take a new connection."""
        ...

    def lost(self, connection: "NativeConnection") -> None:
        """Forget a connection that has ended."""
        ...

    def arrived(self, call: NativeCall) -> None:
        """Take a call."""
        ...

    def received(self) -> None:
        """Hand over the calls that have arrived, where no others are about to."""
        ...

    def flush_soon(self, connection: "NativeConnection") -> None:
        """Flush a connection with others."""
        ...

    def rejection_fields(self, rejection: Rejection) -> list[tuple[bytes, bytes]]:
        """Return the fields of a response that rejects a call."""
        ...

    def hold(self, connection: "NativeConnection", stream_id: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Send a rejection later."""
        ...


class NativeConnection(asyncio.Protocol):
    """A connection. Belongs to one event loop."""

    def __init__(self, transport: ConnectionOwner) -> None:
        """Begin a connection.

        Args:
            transport: Takes its calls.
        """
        self.transport = transport
        self.loop = transport.loop
        self.max_message_bytes = transport.limits.max_message_bytes
        self.first_messages = transport.first_messages
        self.peer = ""
        self.http2 = Connection(Role.SERVER, _CONFIGURATION)
        self._socket: asyncio.Transport | None = None
        self._calls: dict[int, NativeCall] = {}
        self._to_reset: set[int] = set()
        """Streams with a response whose callers have not ended their side: reset after the response."""
        self._held: set[int] = set()
        """Streams of calls that will be rejected."""
        self._writing: dict[NativeCall, asyncio.Future[None]] = {}
        self._is_paused = False
        self._is_draining = False
        self._has_notice = False
        self._stalled: asyncio.TimerHandle | None = None
        self._aging: asyncio.TimerHandle | None = None
        self._num_control = 0
        self._num_strikes = 0
        self._last_ping_s = _LONG_AGO_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != HTTP2:
            transport.abort()
            return
        self.peer = _peer(transport.get_extra_info("peername"))
        self.transport.opened(self)
        self.http2.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: self.transport.limits.max_concurrent_calls,
                Setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                Setting.MAX_HEADER_LIST_SIZE: MAX_METADATA_BYTES,
            }
        )
        self.http2.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self.flush()
        age_s = self.transport.limits.max_connection_age_s
        if age_s is not None:  # not all connections of a restart at once
            self._aging = self.loop.call_later(age_s * uniform(0.9, 1.1), self._grow_old)  # noqa: S311

    def data_received(self, data: bytes) -> None:
        """Take what the caller sent."""
        try:
            self.http2.receive_data(data)
        except NGH2Error as error:
            self._abort(str(error))
            return
        self._handle_events()
        if self._num_control > _MAX_CONTROL_FRAMES:
            self._goodbye(_ENHANCE_YOUR_CALM, b"too_many_control_frames")
            return
        self.flush()
        self.transport.received()

    def connection_lost(self, error: Exception | None) -> None:
        """End all calls."""
        self._socket = None
        self.transport.lost(self)
        for timer in (self._stalled, self._aging):
            if timer is not None:
                timer.cancel()
        self._stalled = self._aging = None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.close()
        for waiting in self._writing.values():
            waiting.cancel()
        self._writing.clear()
        self._to_reset.clear()
        self._held.clear()

    def pause_writing(self) -> None:
        """Read nothing from a caller that does not read."""
        self._is_paused = True
        if self._socket is not None:
            self._socket.pause_reading()
            self._stalled = self.loop.call_later(_UNREAD_S, self._abort, "the caller reads nothing")

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()
            self.flush()

    def flush(self) -> None:
        """Send what is ready, as far as the caller reads."""
        http2, socket = self.http2, self._socket
        while socket is not None and not self._is_paused and not socket.is_closing():
            is_small = http2.queued_body_size() < _WRITE_BYTES
            try:
                data = http2.data_to_send(None if is_small else _WRITE_BYTES)
            except NGH2Error as error:
                self._abort(str(error))
                return
            if data:
                socket.write(data)
            self._handle_events()
            if self._to_reset and self._reset_ended():
                continue
            if is_small or not data:
                break
        if self._writing:
            self._wake_writers()
        self._close_when_drained()

    def flush_soon(self, call: NativeCall) -> None:
        """Send the reply or status of a call with those of others."""
        self._num_strikes, self._last_ping_s = 0, _LONG_AGO_S
        if not call.is_half_closed:
            self._to_reset.add(call.stream_id)
        self.transport.flush_soon(self)

    def reset(self, call: NativeCall) -> None:
        """End a stream whose reply is not read."""
        if not call.is_closed and self._socket is not None:
            with suppress(NGH2Error):
                self.http2.reset_stream(call.stream_id, _CANCEL)
            self.flush()

    async def wait_until_sent(self, call: NativeCall) -> None:
        """Return when the messages of a call are sent, or its connection may send more."""
        waiting = self._writing[call] = self.loop.create_future()
        try:
            await waiting
        finally:
            self._writing.pop(call, None)

    def begin_drain(self) -> None:
        """Tell the client to begin no further call here; those that it has begun are answered.

        The first GOAWAY names no call. The second one comes when the client has answered a ping, and thus has
        seen the first.
        """
        if self._socket is None or self._has_notice:
            return
        self._has_notice = True
        with suppress(NGH2Error):
            self.http2.send_shutdown_notice()
            self.http2.ping(_DRAIN_PING)
        self.flush()

    def _grow_old(self) -> None:
        self.begin_drain()
        self._aging = self.loop.call_later(_NOTICE_S, self.end_drain)

    def end_drain(self) -> None:
        """Accept no further call; close after the last one."""
        if self._socket is None or self._is_draining:
            return
        self._is_draining = True
        with suppress(NGH2Error):
            self.http2.send_goaway(_NO_ERROR)
        self.flush()

    @property
    def is_draining(self) -> bool:
        """Whether no further call is accepted."""
        return self._is_draining

    def cancel_calls(self, status: StatusError) -> None:
        """End the calls that are not answered."""
        for call in list(self._calls.values()):
            call.cancel(status)
        self.flush()

    def close(self) -> None:
        """Close the connection when what is ready has been sent."""
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        """Close the connection now."""
        if self._socket is not None:
            self._socket.abort()

    def _abort(self, reason: str) -> None:
        _log.debug("connection of %s aborted: %s", self.peer, reason)
        self.abort()

    def _goodbye(self, code: int, reason: bytes) -> None:
        """Close the connection with the reason."""
        _log.debug("connection of %s closed: %s", self.peer, reason.decode())
        with suppress(NGH2Error):
            self.http2.send_goaway(code, debug_data=reason)
            data = self.http2.data_to_send(_WRITE_BYTES)
            if self._socket is not None and not self._is_paused:
                self._socket.write(data)
        self.close()

    def _handle_events(self) -> None:
        calls = self._calls
        while events := self.http2.events():
            for event in events:
                if isinstance(event, DataReceived):
                    call = calls.get(event.stream_id)
                    if not event.data and not event.end_stream:
                        self._num_control += 1
                    if call is not None:
                        call.receive(event.data, event.end_stream)
                    if event.end_stream:
                        self._to_reset.discard(event.stream_id)
                elif isinstance(event, RequestReceived):
                    self._begin_call(event)
                elif isinstance(event, StreamClosed):
                    call = calls.pop(event.stream_id, None)
                    if call is not None:
                        call.close()
                    self._to_reset.discard(event.stream_id)
                    self._held.discard(event.stream_id)
                elif isinstance(event, WindowUpdated):
                    self._num_control += 1
                elif isinstance(event, TrailersReceived):
                    call = calls.get(event.stream_id)
                    if call is not None:
                        call.receive(b"", True)
                elif isinstance(event, PingReceived):
                    self._num_control += 1
                    self._count_ping()
                elif isinstance(event, PingAcknowledged):
                    if self._has_notice and event.opaque_data == _DRAIN_PING:
                        self.end_drain()
                elif isinstance(event, SettingsReceived):
                    self._num_control += 1
                    self.transport.prefaces.discard(self)
                elif isinstance(event, ConnectionClosed):
                    self.close()

    def _begin_call(self, event: RequestReceived) -> None:
        stream_id, found = event.stream_id, dict(event.headers)
        method = self.transport.methods.get(found.get(b":path", b""))
        early = None if method is None else method.early
        if early is not None and early.is_armed and self._rejects_early(event, found, early):
            return
        try:
            head = parse_head(event.headers, found)
        except NotGrpcError:
            with suppress(NGH2Error):
                self.http2.reset_stream(stream_id, _INTERNAL_ERROR)
            return
        except StatusError as error:
            self._reject(event, failed_response(error))
            return
        if method is None:
            self._reject(event, _NOT_FOUND)
            return
        if head.timeout_s is not None and head.timeout_s <= 0:
            self._reject(event, _LATE)
            return
        self._num_control = max(0, self._num_control - _CONTROL_FRAMES_PER_CALL)
        call = self._calls[stream_id] = NativeCall(self, stream_id, event.headers, head, method)
        if event.end_stream:
            call.receive(b"", True)
        self.transport.arrived(call)

    def _rejects_early(self, event: RequestReceived, found: dict[bytes, bytes], early: EarlyRejector) -> bool:
        """Reject a call by its header fields, or return that it must be handed over."""
        timeout = found.get(b"grpc-timeout")
        try:
            time_left_s = None if timeout is None else parse_timeout(timeout)
        except StatusError:
            return False
        rejection = early.reject(found, time_left_s)
        if rejection is None:
            return False
        if self._num_control:
            self._num_control = max(0, self._num_control - _CONTROL_FRAMES_PER_CALL)
        self._num_strikes, self._last_ping_s = 0, _LONG_AGO_S
        fields = self.transport.rejection_fields(rejection)
        if rejection.is_held:
            self._held.add(event.stream_id)
            self.transport.hold(self, event.stream_id, fields)
        else:
            self._reject(event, fields)
        return True

    def reject_held(self, stream_id: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Send a rejection that was held back, unless the call has ended."""
        if stream_id in self._held:
            self._held.discard(stream_id)
            with suppress(NGH2Error):
                self.http2.send_response(stream_id, fields, end_stream=True)
                self._to_reset.add(stream_id)  # without effect where the caller has ended its side
            self.transport.flush_soon(self)

    def _reject(self, event: RequestReceived, fields: list[tuple[bytes, bytes]]) -> None:
        """End a call that no method takes."""
        try:
            self.http2.send_response(event.stream_id, fields, end_stream=True)
        except NGH2Error:  # its caller has already reset it
            return
        if not event.end_stream:
            self._to_reset.add(event.stream_id)

    def _reset_ended(self) -> bool:
        """Reset streams whose response is sent, and whose callers may still send; return whether any was."""
        sent = [stream_id for stream_id in self._to_reset if not self.http2.queued_body_size(stream_id)]
        self._to_reset.difference_update(sent)
        for stream_id in sent:
            with suppress(NGH2Error):
                self.http2.reset_stream(stream_id, _NO_ERROR)
        return bool(sent)

    def _wake_writers(self) -> None:
        for call, waiting in list(self._writing.items()):
            if not waiting.done() and not self.http2.queued_body_size(call.stream_id):
                waiting.set_result(None)

    def _close_when_drained(self) -> None:
        if self._is_draining and not self._calls and not self._held and not self._is_paused:
            self.close()

    def _count_ping(self) -> None:
        now_s = self.loop.time()
        interval_s = MIN_PING_INTERVAL_S if self._calls else _IDLE_PING_INTERVAL_S
        is_early = now_s - self._last_ping_s < interval_s
        self._last_ping_s = now_s
        if is_early:
            self._num_strikes += 1
            if self._num_strikes > _MAX_PING_STRIKES:
                self._goodbye(_ENHANCE_YOUR_CALM, _TOO_MANY_PINGS)


def _peer(name: object) -> str:
    """Return the address of a caller, as gRPC's own library writes it."""
    if not isinstance(name, tuple):
        return str(name)
    host, port = str(name[0]), name[1]
    if ip_address(host.partition("%")[0]).version == 4:
        return f"ipv4:{host}:{port}"
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
