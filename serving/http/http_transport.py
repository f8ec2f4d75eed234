"""The transport of JSON over HTTP/1.1: uvicorn's protocol, and the methods of the contract.

A call takes the way of a gRPC call: the same checks of its token, limits, deadlines, metrics and logs.
"""

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from re4.common.errors import RequestError, ServerError
from re4.serving.auth.certificates import CertificateReloader
from re4.serving.auth.tokens import Metadata
from re4.serving.host.addresses import Address
from re4.serving.http.json_mapping import format_error, format_reply, http_status, parse_request
from re4.serving.http.openapi import openapi_document
from re4.serving.http.routes import OPENAPI_PATH, Route, routes_of
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.tls import HTTP1, TlsContexts
from re4.serving.transports.transport import MESSAGE_TOO_LARGE, Method, StatusError

TIMEOUT_HEADER: Final = "x-server-timeout"
"""The caller's deadline in seconds, as Google's servers read it."""

_MAX_CONNECTIONS: Final = 512
"""Further connections of a worker get 503."""
_MAX_HEADER_BYTES: Final = 16_384
_SWEEP_S: Final = 1.0
"""Time between two looks for connections to close."""
_IN_LOOP_BYTES: Final = 32_768
"""Larger messages are converted in a thread: the conversion takes some 120 ns a byte. All calls share one
thread, because a conversion takes ten times the memory of its message, which each thread would keep."""
_STOP_POLL_S: Final = 0.01

_log = logging.getLogger(__name__)

Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[str, str]]


class HttpTransport:
    """An HTTP server of some methods."""

    def __init__(
        self, methods: Sequence[Method], limits: Limits, certificates: CertificateReloader | None = None
    ) -> None:
        """Assemble the server.

        Args:
            methods: What it answers; those with streams have no route.
            limits: Of messages and connections.
            certificates: For TLS; None for none.
        """
        self._tls = None if certificates is None else TlsContexts(certificates, HTTP1)
        self._routes = routes_of(methods)
        self._limits = limits
        self._document = openapi_document(list(self._routes.values()))
        self._config = Config(
            self._answer,
            log_config=None,
            access_log=False,
            interface="asgi3",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        self._converter = ThreadPoolExecutor(1, thread_name_prefix="http-json")
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._idle_since_s: dict[Any, float] = {}
        """Connections without a call, and since when."""

    async def start(self, address: Address) -> int:
        """Listen, and return the port."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        # With the protocol named, asyncio sets TCP_NODELAY; without it, bodies would wait for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address.host, address.port))
        except OSError as error:
            listener.close()
            raise ServerError(f"cannot listen on {address}: {error.strerror}") from None
        self._listener = listener
        await self._listen()
        self._sweeping = asyncio.create_task(self._sweep())
        port: int = listener.getsockname()[1]
        return port

    async def _listen(self) -> None:
        """Accept connections, with the newest certificates."""
        context = None if self._tls is None else self._tls.newest()
        listener = self._listener.dup()
        try:
            server = await asyncio.get_running_loop().create_server(
                partial(H11Protocol, self._config, self._state, {}),
                sock=listener,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self._limits.message_timeout_s,
            )
        except BaseException:
            listener.close()
            raise
        previous, self._server, self._context = self._server, server, context
        if previous is not None:
            previous.close()  # its connections go on

    async def stop(self, grace_s: float, idle: Awaitable[None]) -> None:
        """Accept no further connection, let each end after its call, and close those that are left."""
        ends_s = monotonic() + grace_s
        idling = asyncio.ensure_future(idle)
        if self._server is not None:
            self._server.close()
        self._listener.close()
        self._sweeping.cancel()
        for connection in list(self._state.connections):
            connection.shutdown()
        while self._state.connections and monotonic() < ends_s:
            await asyncio.sleep(_STOP_POLL_S)
        for connection in list(self._state.connections):
            connection.transport.abort()
        self._converter.shutdown(wait=False, cancel_futures=True)
        idling.cancel()

    async def _sweep(self) -> None:
        """Close idle connections, and listen anew after a change of certificates. No error ends it."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                self._close_idle()
                if self._tls is not None and self._tls.newest() is not self._context:
                    await self._listen()
            except Exception:  # such as too many open files: the next time may succeed
                _log.exception("HTTP goes on with the certificates in use")

    def _close_idle(self) -> None:
        """Close connections that have had no call for too long: those with incomplete headers have none."""
        now_s = monotonic()
        idle = {
            connection
            for connection in self._state.connections
            if isinstance(connection, H11Protocol)
            and (connection.cycle is None or connection.cycle.response_complete)
        }
        self._idle_since_s = {connection: self._idle_since_s.get(connection, now_s) for connection in idle}
        for connection, since_s in self._idle_since_s.items():
            if now_s - since_s > self._limits.message_timeout_s:
                connection.transport.abort()

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request: uvicorn's ASGI application."""
        path, verb = scope["path"], scope["method"]
        route = self._routes.get(path)
        wanted = "GET" if path == OPENAPI_PATH else None if route is None else route.verb
        headers = _headers_of(scope)
        if wanted is None:
            await _send_error(send, 404, f"there is no {path!r:.200}; {OPENAPI_PATH} lists all paths")
        elif verb != wanted:
            await _send_error(send, 405, f"{path} takes {wanted}, not {verb!r:.20}", [("allow", wanted)])
        elif route is None:
            await _send(send, 200, self._document)
        elif route.has_body and not _is_json(headers):
            # A browser sends JSON to another site only where that site allows it.
            await _send_error(send, 415, "send the header Content-Type: application/json")
        else:
            await self._call(route, scope, headers, receive, send)

    async def _call(
        self, route: Route, scope: dict[str, Any], headers: Headers, receive: Receive, send: Send
    ) -> None:
        timeout = dict(headers).get(TIMEOUT_HEADER)
        timeout_s = None if timeout is None else _seconds(timeout)
        if timeout is not None and timeout_s is None:
            await _send_error(send, 400, f"{TIMEOUT_HEADER} is {timeout!r:.40}; give seconds, such as 0.5")
            return
        call = _Call(route, scope, headers, receive, self._limits, timeout_s, self._converter)
        try:
            reply = await self._reply_of(route, call)
            if reply is None:
                return
            call.hold(len(reply))
            await _send(send, 200, reply)
        except StatusError as error:
            body, error_headers = format_error(error)
            status = 413 if call.is_too_large else http_status(error.code)
            await _send(send, status, body, error_headers)
        finally:
            call.end()

    async def _reply_of(self, route: Route, call: "_Call") -> bytes | None:
        """Return the reply in JSON; None where the caller has left.

        Raises:
            StatusError: the call ends with an error.
        """
        left_s = call.time_left()
        answering = asyncio.ensure_future(route.answer(call))
        leaving = asyncio.ensure_future(call.disconnected())
        try:
            await asyncio.wait({answering, leaving}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
                if leaving.done():
                    return None
                raise StatusError(StatusCode.DEADLINE_EXCEEDED, f"not answered within {call.timeout_s:g} s")
            data = answering.result()
        finally:
            leaving.cancel()
            answering.cancel()
        if len(data) > _IN_LOOP_BYTES:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._converter, lambda: format_reply(route.reply(data)))
        return format_reply(route.reply(data))


class _Call:
    """One request, as the methods see it."""

    def __init__(
        self,
        route: Route,
        scope: dict[str, Any],
        headers: Headers,
        receive: Receive,
        limits: Limits,
        timeout_s: float | None,
        converter: Executor,
    ) -> None:
        host, port = scope["client"] or ("unix", 0)
        self.peer = f"http:{host}:{port}"
        self.is_too_large = False
        self.timeout_s = timeout_s
        self._route = route
        self._headers = headers
        self._receive = receive
        self._limits = limits
        self._converter = converter
        self._has_read = asyncio.Event()
        self._on_end: Callable[[], None] | None = None
        self._recount: Callable[[int], None] | None = None
        self._began_s = monotonic()

    def metadata(self) -> Metadata:
        return self._headers

    def time_left(self) -> float | None:
        return None if self.timeout_s is None else self._began_s + self.timeout_s - monotonic()

    async def read(self) -> bytes:
        try:
            async with asyncio.timeout(self._limits.message_timeout_s):
                body = await self._body()
        except TimeoutError:
            raise StatusError(
                StatusCode.DEADLINE_EXCEEDED,
                f"no complete message came within {self._limits.message_timeout_s:g} s of the call's start "
                "(message_timeout_s)",
            ) from None
        self._has_read.set()
        if len(body) > _IN_LOOP_BYTES:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._converter, parse_request, self._route.request(), body)
        return parse_request(self._route.request(), body)

    async def _body(self) -> bytes:
        parts, size = [], 0
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise RequestError("the call ended without a message; send one, which may be empty")
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.max_message_bytes:
                self.is_too_large = True
                details = MESSAGE_TOO_LARGE.format(size, self._limits.max_message_bytes)
                raise StatusError(StatusCode.RESOURCE_EXHAUSTED, details)
            if not event.get("more_body", False):
                return b"".join(parts)

    async def disconnected(self) -> None:
        """Return when the caller has left."""
        await self._has_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def next(self) -> bytes | None:
        raise NotImplementedError("methods with streams have no route")

    async def write(self, message: bytes) -> None:
        raise NotImplementedError("methods with streams have no route")

    def on_end(self, callback: Callable[[], None], recount: Callable[[int], None]) -> None:
        self._on_end, self._recount = callback, recount

    def hold(self, num_bytes: int) -> None:
        """Count the bytes of the reply in JSON in place of those of its message."""
        if self._recount is not None:
            self._recount(num_bytes)

    def end(self) -> None:
        """Release the accounts of the call: its reply is sent."""
        if self._on_end is not None:
            self._on_end()
            self._on_end = None


def _headers_of(scope: dict[str, Any]) -> Headers:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def _is_json(headers: Headers) -> bool:
    kind = dict(headers).get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"


def _seconds(text: str) -> float | None:
    """Return the seconds of a deadline; None for a text that is none."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


async def _send_error(send: Send, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
    code = StatusCode.NOT_FOUND if status == 404 else StatusCode.INVALID_ARGUMENT
    body, _ = format_error(StatusError(code, message))
    await _send(send, status, body, headers)


async def _send(send: Send, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Send a response; return when the caller has read most of it."""
    all_headers = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})  # waits until the buffer is nearly empty
