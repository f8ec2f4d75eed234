"""The native transport: HTTP/2 by nghttp2, TLS by OpenSSL, gRPC by `grpc_framing`, all in the event loop.

Calls are handed over in batches: those of all connections that the event loop has read in one turn. Their
replies leave in batches too, one write for each connection.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Sequence
from contextvars import copy_context
from typing import Final

from re4.common.errors import ServerError
from re4.serving.auth.certificates import CertificateReloader
from re4.serving.host.addresses import Address
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.grpc_framing import failed_response
from re4.serving.transports.message_deadlines import MessageDeadlines
from re4.serving.transports.native_call import NativeCall
from re4.serving.transports.native_connection import NativeConnection
from re4.serving.transports.tls import TlsContexts
from re4.serving.transports.transport import Method, Rejection, StatusError

_BACKLOG: Final = 1024
_ACCEPTS_AT_ONCE: Final = 100
_NO_DESCRIPTOR_S: Final = 1.0
"""Pause of accepting where the process has no descriptor left."""
_NOTICE_S: Final = 1.0
"""Time in which a client must answer the ping behind the notice of a stop."""
_REPLIES_S: Final = 0.5
"""From the last answer to the end of the stop, where a caller does not read or keeps a stream open."""
_HOLD_S: Final = 0.1
"""How long a rejection is held back. With the concurrent calls of a connection it bounds the rejections of a
connection: 1,000 a second with 100 calls."""
_HOLD_STEP_S: Final = 0.01
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 600),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""TCP finds out that a peer is gone: by probes, 13 minutes after the last sign of it, …"""
_USER_TIMEOUT_MS: Final = 20_000
"""… or where it acknowledges nothing that was sent for so long, as in gRPC's own library (gRFC A18)."""

_log = logging.getLogger(__name__)


class NativeTransport:
    """A server of gRPC in the event loop."""

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
        self.methods = {method.path.encode(): method for method in methods}
        self.limits = limits
        self._tls = None if certificates is None else TlsContexts(certificates)
        self.first_messages: MessageDeadlines[NativeCall] = MessageDeadlines(
            limits.message_timeout_s, NativeCall.end_late
        )
        self.prefaces: MessageDeadlines[NativeConnection] = MessageDeadlines(
            limits.message_timeout_s, NativeConnection.abort
        )
        """Connections whose settings have not come yet."""
        self._listener: socket.socket | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._connections: set[NativeConnection] = set()
        self._no_connection = asyncio.Event()
        self._no_connection.set()
        self._arrived: list[NativeCall] = []
        self._is_handing_over = False
        self._held: deque[tuple[float, NativeConnection, int, list[tuple[bytes, bytes]]]] = deque()
        """Rejections, and when they are due."""
        self._last_rejection: tuple[StatusError | None, list[tuple[bytes, bytes]]] = None, []
        self._to_flush: dict[NativeConnection, None] = {}

    async def start(self, address: Address) -> int:
        """Listen, and return the port."""
        self.loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            listener = socket.create_server(
                (address.host, address.port),
                family=family,
                backlog=_BACKLOG,
                reuse_port=True,
                dualstack_ipv6=family is socket.AF_INET6 and address.host == "::",
            )
        except OSError as error:
            raise ServerError(f"cannot listen on {address}: {error.strerror}") from None
        listener.setblocking(False)
        self._listener = listener
        self.loop.add_reader(listener, self._accept)
        port: int = listener.getsockname()[1]
        return port

    async def stop(self, grace_s: float, idle: Awaitable[None]) -> None:
        """Tell clients by GOAWAY to send no further call, wait for the calls in flight, and close."""
        ends_s = self.loop.time() + grace_s
        idling = asyncio.ensure_future(idle)
        if self._listener is not None:
            self._accept()  # those that wait would be reset
            if self._listener is not None:
                self.loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None
        for connecting in list(self._connecting):
            await asyncio.wait({connecting}, timeout=_NOTICE_S)
        for connection in list(self._connections):
            connection.begin_drain()
        await self._wait_for_connections(min(_NOTICE_S, grace_s))
        for connection in list(self._connections):
            connection.end_drain()
        closing = asyncio.create_task(self._no_connection.wait())
        await asyncio.wait(
            {idling, closing},
            timeout=max(0.0, ends_s - self.loop.time()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        stopped = StatusError(StatusCode.UNAVAILABLE, "the server has stopped")
        if idling.done():
            await self._wait_for_connections(_REPLIES_S)
        for connection in list(self._connections):
            connection.cancel_calls(stopped)
        await self._wait_for_connections(_REPLIES_S)
        for connection in list(self._connections):
            connection.abort()
        await self._wait_for_connections(_REPLIES_S)
        closing.cancel()
        idling.cancel()
        self.first_messages.close()
        self.prefaces.close()

    def opened(self, connection: NativeConnection) -> None:
        """Count a connection."""
        self._connections.add(connection)
        self._no_connection.clear()
        self.prefaces.add(connection)

    def lost(self, connection: NativeConnection) -> None:
        """Count a connection no longer."""
        self._connections.discard(connection)
        self.prefaces.discard(connection)
        self._to_flush.pop(connection, None)
        if not self._connections:
            self._no_connection.set()

    def arrived(self, call: NativeCall) -> None:
        """Take a call; `received` hands it over."""
        self._arrived.append(call)

    def received(self) -> None:
        """Hand over the calls that have arrived: all those of a turn of the event loop together.

        Where no other connection has data in this turn, that is now: a further turn costs 10 µs.
        """
        if not self._arrived or self._is_handing_over:
            return
        # Of asyncio's own event loops: what else is ready in this turn.
        if getattr(self.loop, "_ready", True):
            self._is_handing_over = True
            self.loop.call_soon(self._hand_over)
        else:
            self._hand_over()

    def flush_soon(self, connection: NativeConnection) -> None:
        """Send the replies of a connection in the event loop's next turn, or after the present batch."""
        if not self._to_flush:
            self.loop.call_soon(self._flush)
        self._to_flush[connection] = None

    def rejection_fields(self, rejection: Rejection) -> list[tuple[bytes, bytes]]:
        """Return the fields of a response that rejects a call; those of its status are made once."""
        if rejection.status is not self._last_rejection[0]:
            self._last_rejection = rejection.status, failed_response(rejection.status)
        fields = self._last_rejection[1]
        return [*fields, *rejection.fields] if rejection.fields else fields

    def hold(self, connection: NativeConnection, stream_id: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Send a rejection later."""
        if not self._held:
            self.loop.call_later(_HOLD_STEP_S, self._release)
        self._held.append((self.loop.time() + _HOLD_S, connection, stream_id, fields))

    def _release(self) -> None:
        """Send the rejections that were held back long enough."""
        now_s = self.loop.time()
        while self._held and self._held[0][0] <= now_s:
            _, connection, stream_id, fields = self._held.popleft()
            connection.reject_held(stream_id, fields)
        if self._held:
            self.loop.call_later(_HOLD_STEP_S, self._release)

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, {}
        for connection in connections:
            connection.flush()

    def _hand_over(self) -> None:
        calls, self._arrived = self._arrived, []
        self._is_handing_over = False
        whole: dict[str, list[NativeCall]] = {}
        for call in calls:
            if call.is_ended:
                continue
            if call.method.answer_many is not None and call.is_ready:
                whole.setdefault(call.method.path, []).append(call)
            else:
                # A context of its own: what a call sets must not reach the calls after it.
                answering = self._answer_one if call.method.answer is not None else self._answer_stream
                call.task = self.loop.create_task(answering(call))
        for together in whole.values():
            answer_many = together[0].method.answer_many
            assert answer_many is not None
            copy_context().run(answer_many, together)
        self._flush()  # what is answered by now need not wait for a turn
        for call in calls:
            call.watch_deadline()

    async def _answer_one(self, call: NativeCall) -> None:
        assert call.method.answer is not None
        try:
            call.respond(await call.method.answer(call))
        except StatusError as error:
            call.fail(error)
        except Exception:
            _fail_unexpectedly(call)
        # Not later: a batch may be next, and block the event loop.
        self._flush()

    async def _answer_stream(self, call: NativeCall) -> None:
        assert call.method.answer_stream is not None
        try:
            await call.method.answer_stream(call)
            call.end_stream()
        except StatusError as error:
            call.fail(error)
        except Exception:
            _fail_unexpectedly(call)

    def _accept(self) -> None:
        """Accept the connections that wait."""
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._listener is None:
                return
            try:
                accepted, _peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                _log.error("no connection is accepted for %g s: %s", _NO_DESCRIPTOR_S, error.strerror)
                self.loop.remove_reader(self._listener)
                self.loop.call_later(_NO_DESCRIPTOR_S, self._accept_again)
                return
            connecting = self.loop.create_task(self._connect(accepted))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    def _accept_again(self) -> None:
        if self._listener is not None:
            self.loop.add_reader(self._listener, self._accept)

    async def _connect(self, accepted: socket.socket) -> None:
        """Begin a connection; with TLS, after its handshake."""
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for level, option, value in _KEEP_ALIVE:
                accepted.setsockopt(level, option, value)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            tls = None if self._tls is None else self._tls.newest()
            await self.loop.connect_accepted_socket(
                lambda: NativeConnection(self),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self.limits.message_timeout_s,
            )
        except (OSError, ssl.SSLError) as error:  # the caller left, or its handshake failed
            accepted.close()
            _log.debug("a connection failed: %s", error)

    async def _wait_for_connections(self, timeout_s: float) -> None:
        """Wait until there is no connection, at most for a time."""
        waiting = asyncio.ensure_future(self._no_connection.wait())
        await asyncio.wait({waiting}, timeout=timeout_s)
        waiting.cancel()


def _fail_unexpectedly(call: NativeCall) -> None:
    _log.exception("%s failed", call.method.path)
    call.fail(StatusError(StatusCode.UNKNOWN, "the server's log says why"))
