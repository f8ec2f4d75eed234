"""The transport of `pygrpc-native`: HTTP/2 and gRPC in Rust threads, calls handed over in batches.

A helper thread waits for the first call. The event loop then takes all further calls itself, until
there is none. So a busy server has no change of threads, and an idle one no polling.

Other methods, such as reflection with its stream in both directions, are answered by a grpcio
transport behind a Unix socket.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc
from pygrpc_native import EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from re4.common.errors import ServerError
from re4.serving.auth.tokens import Metadata
from re4.serving.host.addresses import Address
from re4.serving.host.temporary_folders import temporary_folder
from re4.serving.settings import Limits
from re4.serving.transports.grpcio_transport import GrpcioTransport
from re4.serving.transports.transport import MESSAGE_TOO_LARGE, Method, ResponseMetadata, StatusError

_MAX_EVENTS: Final = 1024
"""Most calls that are taken at once."""
_IO_THREADS: Final = 1
"""One thread carries some 40,000 calls a second, more than a worker answers."""
_FULL_STREAM_S: Final = 0.05
"""Time between two tries to send to a stream whose caller reads slowly."""
_REPLIES_S: Final = 0.05
"""From the last answer to the end of the connections: time for the last replies to be sent."""
_STOP_POLL_S: Final = 0.005
_RESERVED: Final = "grpc-"
"""Prefix of metadata that pygrpc-native refuses to send, such as the advice on retries."""

_log = logging.getLogger(__name__)


class NativeTransport:
    """A `NativeGrpcFront`, driven by the event loop."""

    def __init__(
        self,
        methods: Sequence[Method],
        limits: Limits,
        *,
        fallback: GrpcioTransport | None = None,
        folder: Path | None = None,
    ) -> None:
        """Assemble the server.

        Args:
            methods: What it answers.
            limits: Of messages and connections.
            fallback: Answers the calls of all other methods; None for none.
            folder: For the socket of `fallback`; None for the system's folder of temporary files.
        """
        self._methods = list(methods)
        self._limits = limits
        self._fallback = fallback
        self._folder = folder
        self._calls: dict[int, _Call] = {}
        self._open = ExitStack()
        self._is_stopping = False
        self._may_wait = threading.Semaphore(0)

    async def start(self, address: Address) -> int:
        """Listen, and return the port."""
        self._loop = asyncio.get_running_loop()
        try:
            self._front = NativeGrpcFront(
                str(address),
                [(method.path, method.answer is None) for method in self._methods],
                io_threads=_IO_THREADS,
                call_details=True,
                delay_stream_headers=True,
                keepalive_permit_without_calls=False,
                max_concurrent_streams=self._limits.max_concurrent_calls,
                reuse_port=True,
            )
        except OSError as error:
            raise ServerError(f"cannot listen on {address}: {error}") from None
        if self._fallback is not None:
            # The next worker's start removes the folder of a killed one. The path of a socket has at most
            # 107 bytes, so the folder is named by its descriptor.
            folder = self._open.enter_context(temporary_folder("+fallback-", self._folder))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._open.callback(os.close, descriptor)
            path = f"/proc/self/fd/{descriptor}/socket"
            await self._fallback.start(f"unix:{path}")
            self._front.set_fallback(path)
        self._front.start()
        self._thread = threading.Thread(target=self._wait_for_calls, name="native-calls", daemon=True)
        self._thread.start()
        return self._front.bound_port

    async def stop(self, grace_s: float, idle: Awaitable[None]) -> None:
        """Reject further calls, wait for those in flight, and close.

        Connections cannot be told to send no further call.
        """
        ends_s = monotonic() + grace_s
        idling = asyncio.ensure_future(idle)
        self._is_stopping = True
        while self._calls and monotonic() < ends_s:
            await asyncio.sleep(_STOP_POLL_S)
        idling.cancel()
        await asyncio.sleep(_REPLIES_S)
        for call in list(self._calls.values()):
            call.cancel()
        self._may_wait.release()
        await asyncio.to_thread(self._close)
        if self._fallback is not None:
            await self._fallback.stop(0.0, asyncio.sleep(0))
            self._open.close()

    def _close(self) -> None:
        self._front.close()
        self._thread.join()

    def _wait_for_calls(self) -> None:
        """Wait for calls, in the helper thread, whenever the event loop has none to take."""
        while (events := self._front.recv_batch_details(_MAX_EVENTS)) is not None:
            try:
                self._loop.call_soon_threadsafe(self._take, events)
            except RuntimeError:  # the event loop was closed without a stop
                return
            self._may_wait.acquire()

    def _take_waiting(self) -> None:
        """Take the calls that arrived meanwhile; without any, let the helper thread wait for them."""
        events = self._front.recv_batch_details(_MAX_EVENTS, 0)
        if events:
            self._take(events)
        else:
            self._may_wait.release()

    def _take(self, events: Sequence[Any]) -> None:
        # Scheduled first: so the calls that wait by then are taken before the next batch starts.
        self._loop.call_soon(self._take_waiting)
        by_method: dict[int, list[_Call]] = {}
        for kind, call_id, method_id, message, _, details in events:
            if kind == EVENT_CANCEL:
                ended = self._calls.get(call_id)
                if ended is not None:
                    ended.cancel()
                continue
            call = _Call(self, call_id, message, *details)
            self._calls[call_id] = call
            by_method.setdefault(method_id, []).append(call)
        for method_id, calls in by_method.items():
            # A context of its own: what a call sets must not reach the calls after it.
            copy_context().run(self._answer, self._methods[method_id], calls)

    def _answer(self, method: Method, calls: "Sequence[_Call]") -> None:
        limit = self._limits.max_message_bytes
        accepted = []
        for call in calls:
            if call.is_ended:
                continue
            size = len(call.message)
            if size > limit:
                details = MESSAGE_TOO_LARGE.format(size, limit)
                call.fail(StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
            elif self._is_stopping:
                call.fail(StatusError(grpc.StatusCode.UNAVAILABLE, "the server is stopping"))
            else:
                accepted.append(call)
        if method.answer_many is not None:
            method.answer_many(accepted)
            return
        for call in accepted:
            answering = self._answer_one if method.answer is not None else self._answer_stream
            call.task = self._loop.create_task(answering(method, call))

    async def _answer_one(self, method: Method, call: "_Call") -> None:
        assert method.answer is not None
        try:
            call.respond(await method.answer(call))
        except StatusError as error:
            call.fail(error)
        except Exception:
            _log.exception("%s failed", method.path)
            call.fail(StatusError(grpc.StatusCode.UNKNOWN, "the server's log says why"))

    async def _answer_stream(self, method: Method, call: "_Call") -> None:
        assert method.answer_stream is not None
        try:
            await method.answer_stream(call)
            self._front.stream_end(call.call_id)
            call.end()
        except StatusError as error:
            call.fail(error)
        except Exception:
            _log.exception("%s failed", method.path)
            call.fail(StatusError(grpc.StatusCode.UNKNOWN, "the server's log says why"))


class _Call:
    __slots__ = (
        "_deadline_s", "_metadata", "_on_cancel", "_on_end", "_transport",
        "call_id", "is_ended", "message", "peer", "task",
    )  # fmt: skip

    def __init__(
        self,
        transport: NativeTransport,
        call_id: int,
        message: bytes,
        metadata: Metadata,
        peer: str,
        time_left_s: float | None,
    ) -> None:
        self._transport = transport
        self._metadata = metadata
        self._deadline_s = None if time_left_s is None else monotonic() + time_left_s
        self._on_cancel: Callable[[], object] | None = None
        self._on_end: Callable[[], None] | None = None
        self.call_id = call_id
        self.is_ended = False
        self.message = message
        self.peer = peer
        self.task: asyncio.Task[None] | None = None

    def metadata(self) -> Metadata:
        return self._metadata

    def time_left(self) -> float | None:
        return None if self._deadline_s is None else self._deadline_s - monotonic()

    async def read(self) -> bytes:
        return self.message

    async def write(self, message: bytes) -> None:
        front = self._transport._front
        while (sent := front.stream_try_send(self.call_id, message)) == STREAM_FULL:
            await asyncio.sleep(_FULL_STREAM_S)
        if sent == STREAM_CLOSED:
            raise asyncio.CancelledError

    def on_end(self, callback: Callable[[], None]) -> None:
        self._on_end = callback

    def on_cancel(self, callback: Callable[[], object]) -> None:
        self._on_cancel = callback

    def discard_message(self) -> None:
        self.message = b""

    def respond(self, reply: bytes) -> None:
        self._transport._front.respond(self.call_id, reply)
        self.end()

    def fail(self, error: StatusError) -> None:
        code: int = error.code.value[0]
        self._transport._front.fail(self.call_id, code, error.details, _sendable(error.metadata))
        self.end()

    def cancel(self) -> None:
        """End a call whose caller left, or whose deadline passed."""
        if self.is_ended:
            return
        on_cancel = self._on_cancel
        self.end()
        if self.task is not None:
            self.task.cancel()
        if on_cancel is not None:
            on_cancel()

    def end(self) -> None:
        self.is_ended = True
        # It refers to this call, and the cycle would keep the version until the garbage collector runs.
        self._on_cancel = None
        self._transport._calls.pop(self.call_id, None)
        if self._on_end is not None:
            self._on_end()
            self._on_end = None


def _sendable(metadata: ResponseMetadata) -> list[tuple[str, str]]:
    return [(key, value) for key, value in metadata if not key.startswith(_RESERVED)]
