"""The calls of `re4.v1.Retrieval`. Each call is answered by one version.

Handlers take and return bytes, so that a message that cannot be parsed gets the right status.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from time import perf_counter
from typing import Final, Protocol, TypeAlias

import grpc

from re4 import __version__
from re4.common.errors import OverloadError, RateError, Re4Error, ShedError, UnreadRepliesError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import RequestResult, answer_batch, batch_group
from re4.serving.api.batch_retrieve import batch_retrieve
from re4.serving.api.decoding import decode
from re4.serving.api.first_message import FirstMessages
from re4.serving.api.history_calls import HistoryCalls
from re4.serving.api.reply_memory import ReplyMemory
from re4.serving.api.validation import CheckedRequest, check_encode, check_retrieve
from re4.serving.auth.authenticator import Authenticator
from re4.serving.auth.tokens import Scope
from re4.serving.batching.batcher import Batcher, QueuedRequest
from re4.serving.batching.brown_out import BrownOut
from re4.serving.batching.queue import BatchGroup
from re4.serving.batching.rejection_pacing import RejectionPacer
from re4.serving.host.cgroups import usable_cores
from re4.serving.host.threads import limit_openmp_threads
from re4.serving.observability.call_context import CURRENT_CALL, REQUEST_ID, Call, stages_of
from re4.serving.observability.metrics import CallMetrics
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.protocol.status_codes import STATUS_NAMES, status_of
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.merging import MAX_SCORE
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

SERVICE_NAME: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name

RETRY_PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata of a rejected call: milliseconds to wait before the next try. gRPC clients
whose retry policy includes RESOURCE_EXHAUSTED obey it by themselves (gRFC A6)."""

_MAX_BLOCK_SHARED_CORE_MS: Final = 50.0
"""How long a batch may block the event loop where the worker thread has no core of its own. A
worker thread would only take turns with the event loop on one core, and arriving calls would wait
all the same."""

_MAX_BLOCK_OWN_CORE_MS: Final = 5.0
"""The same where the worker thread has its own core. The way of a lone call to a thread and back
costs time; where many calls wait, it is better to read them meanwhile."""

_log = logging.getLogger(__name__)

TimeLeft: TypeAlias = Callable[[], float | None]
"""Seconds until the caller's deadline; None where there is none."""
Method: TypeAlias = Callable[[bytes, TimeLeft], Awaitable[bytes]]
"""From a request to a reply, both bytes."""
Handler: TypeAlias = Callable[[object, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class CallListener(Protocol):
    """Observes the calls that ended."""

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Observe a call that ended: its status, the status' details, and how long it took."""


def _shed_reason(error: OverloadError) -> str:
    """Return the metric's label of a rejection."""
    if isinstance(error, ShedError):
        return "overload"
    if isinstance(error, UnreadRepliesError):
        return "replies"
    return "rate" if isinstance(error, RateError) else "deadline"


def _add_stages(call: Call, began_s: float, queued: "asyncio.Future[RequestResult]") -> None:
    """Add the stages of a part of a BatchRetrieve, by the result of its first user."""
    assert isinstance(queued, QueuedRequest)
    if not queued.cancelled() and queued.exception() is None:
        found = queued.result().query_result
        if found is not None:
            call.stages += stages_of(found.times, queued.queue_us, began_s)


class RetrievalService:
    """Answers calls by the live version. Belongs to one event loop."""

    def __init__(
        self,
        live: LiveVersion,
        settings: ServerSettings,
        metrics: CallMetrics,
        first_messages: FirstMessages,
        authenticator: Authenticator | None = None,
        listeners: Sequence[CallListener] = (),
        *,
        has_stages: bool = False,
        worker_thread: ThreadPoolExecutor | None = None,
        on_sample: Callable[[RecallSample], None] | None = None,
    ) -> None:
        """Start without a call.

        Args:
            live: The version that answers.
            settings: Of the server.
            metrics: Counts the calls.
            first_messages: Receives the message of each call.
            authenticator: Checks tokens; None where calls need none.
            listeners: Observers of calls that ended.
            has_stages: Whether a listener uses `Call.stages`.
            worker_thread: The only thread that may run the pipeline; None to make one.
            on_sample: Takes results whose recall can be measured; None to measure none.
        """
        self._live = live
        self._settings = settings
        self._metrics = metrics
        self._first_messages = first_messages
        self._authenticator = authenticator
        self._listeners = tuple(listeners)
        self._has_stages = has_stages
        has_own_core = worker_thread is not None or settings.num_processes < usable_cores()
        max_block_ms = _MAX_BLOCK_OWN_CORE_MS if has_own_core else _MAX_BLOCK_SHARED_CORE_MS
        self._batcher: Batcher[CheckedRequest, RequestResult] = Batcher(
            self._run,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_queue_ms,
            max_delay_ms=settings.max_batch_delay_ms,
            max_block_ms=max_block_ms if worker_thread is None else 0.0,
            has_own_core=has_own_core,
            group_of=batch_group,
            on_thread_start=limit_openmp_threads,
            worker_thread=worker_thread,
        )
        self._histories = HistoryCalls(settings, metrics)
        self._rejections = RejectionPacer()
        self._on_sample = on_sample
        self._random = Random()  # noqa: S311 (nothing secret)
        self._brown_out = BrownOut(settings.max_queue_ms, settings.brown_out_recall_floor)
        limits = settings.limits
        self._reply_memory = ReplyMemory(limits.max_reply_bytes, limits.max_reply_bytes_per_caller)
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_for_worker_thread(self) -> None:
        """Return when the thread that runs batches has finished its present one."""
        await self._batcher.wait_for_worker_thread()

    def handlers(self) -> dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]:
        """Return a handler for each method."""
        methods: dict[str, tuple[Method, Scope]] = {
            "Retrieve": (self._retrieve, Scope.RETRIEVE),
            "BatchRetrieve": (self._batch_retrieve, Scope.RETRIEVE),
            "Encode": (self._encode, Scope.RETRIEVE),
            "Info": (self._info, Scope.RETRIEVE),
            "RecordEvents": (self._record_events, Scope.RECORD_EVENTS),
            "GetHistory": (self._get_history, Scope.READ_HISTORIES),
            "ForgetUser": (self._forget_user, Scope.RECORD_EVENTS),
        }
        return {
            name: grpc.stream_unary_rpc_method_handler(self._guarded(name, method, scope))
            for name, (method, scope) in methods.items()
        }

    async def wait_idle(self) -> None:
        """Return when no call is in flight; one whose message has not come is none."""
        await self._idle.wait()

    @property
    def is_idle(self) -> bool:
        """Whether no call is in flight."""
        return self._idle.is_set()

    def close(self) -> None:
        """End the threads."""
        self._batcher.close()
        self._histories.close()

    def _run(self, requests: Sequence[CheckedRequest]) -> Sequence[RequestResult | Exception]:
        """Answer a batch of one version, in the worker thread or the event loop's."""
        results = answer_batch(requests, self._settings.fallback)
        found = (each.query_result for each in results if isinstance(each, RequestResult))
        times = next((one.times for one in found if one is not None), None)
        if times is not None:
            try:
                asyncio.get_running_loop().call_soon(self._metrics.batch, times)
            except RuntimeError:  # in the worker thread, which delays no call
                self._metrics.batch(times)
        return results

    def _guarded(self, name: str, method: Method, scope: Scope) -> Handler:
        """Return a handler that turns a method's errors into statuses, and counts its calls."""

        async def guarded(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            began_s = perf_counter()
            loop = asyncio.get_running_loop()
            call = Call(name, context.invocation_metadata)
            CURRENT_CALL.set(call)
            code, details = grpc.StatusCode.CANCELLED, ""
            pushback: tuple[tuple[str, str], ...] = ()
            num_begun = 0
            try:
                if self._authenticator is not None:
                    call.caller = self._authenticator.admit(call.metadata, scope, name)
                data = await self._first_messages.read(context)
                began_s = perf_counter()
                num_begun = 1
                self._num_in_flight += 1
                self._idle.clear()
                held = self._reply_memory.begin(context.peer() if call.caller is None else call.caller.name)
                context.add_done_callback(lambda _: held.release())  # type: ignore[arg-type]  # inexact stub
                call.hold = held.grow
                reply = await method(data, context.time_remaining)
                held.finish(len(reply))
                code = grpc.StatusCode.OK
                return reply
            except Re4Error as error:
                code, details = status_of(type(error)), str(error)
                if isinstance(error, ShedError) and self._batcher.is_batch_running:
                    self._rejections.pace()
                if isinstance(error, OverloadError):
                    self._metrics.shed(_shed_reason(error))
                    if error.retry_after_ms is not None:
                        pushback = ((RETRY_PUSHBACK, str(error.retry_after_ms)),)
                if code is grpc.StatusCode.INTERNAL:
                    _log.error("%s: %s", name, error)
            except grpc.aio.AbortError:  # no message came in time, and the caller has the status
                code, details = grpc.StatusCode.DEADLINE_EXCEEDED, self._first_messages.late_details
                raise
            except Exception:
                _log.exception("%s failed", name)
                code, details = grpc.StatusCode.INTERNAL, f"{name} failed; the server's log says why"
            finally:
                took_s = perf_counter() - began_s
                self._num_in_flight -= num_begun
                if not self._num_in_flight:
                    self._idle.set()
                loop.call_soon(self._count, call, code.name, took_s)
                self._notify(call, code.name, details, took_s)
            return await context.abort(code, details, (*pushback, (REQUEST_ID, call.request_id)))

        return guarded

    def _count(self, call: Call, code: str, seconds: float) -> None:
        """Count a call that ended."""
        self._metrics.call(call.method, code, seconds)
        for stage, took_s in call.seconds:
            self._metrics.stage(stage, took_s)
        if call.caller is not None:
            self._metrics.caller(call.caller.name, code)

    def _notify(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Notify the listeners that a call ended. An error of a listener does not fail the call."""
        for listener in self._listeners:
            try:
                listener.ended(call, code, details, seconds)
            except Exception:
                _log.exception("%s cannot observe a call", type(listener).__name__)

    async def _retrieve(self, data: bytes, time_left: TimeLeft) -> bytes:
        began_s = perf_counter()
        snapshot = self._live.current()
        admitted = self._admit(snapshot, time_left)
        message = decode(retrieval_pb2.RetrieveRequest, data)
        request = self._with_current_effort(check_retrieve(message, snapshot, self._settings))
        if request.user_id:
            request = await self._histories.with_history(request, time_left, CURRENT_CALL.get())
        result, queue_us = await self._submit(request, time_left, admitted, began_s)
        self._sample_recall(result, snapshot)
        began_s = perf_counter()
        reply = replies.retrieve_reply(result, queue_us, request)
        CURRENT_CALL.get().seconds.append(("reply", perf_counter() - began_s))
        return reply

    async def _batch_retrieve(self, data: bytes, time_left: TimeLeft) -> bytes:
        snapshot = self._live.current()
        self._admit(snapshot, time_left)
        message = decode(retrieval_pb2.BatchRetrieveRequest, data)
        call = CURRENT_CALL.get()

        def enqueue(
            requests: Sequence[CheckedRequest], is_admitted: bool
        ) -> list[QueuedRequest[CheckedRequest, RequestResult]]:
            queued = self._batcher.enqueue(
                [self._with_current_effort(request) for request in requests],
                time_left_s=time_left(),
                is_admitted=is_admitted,
            )
            if self._has_stages and queued:
                queued[0].add_done_callback(partial(_add_stages, call, perf_counter()))
            return queued

        def look_up(requests: Sequence[CheckedRequest]) -> Awaitable[list[CheckedRequest | Re4Error]]:
            return self._histories.with_histories(requests, time_left, call)

        reply = await batch_retrieve(
            message, snapshot, self._settings, enqueue, look_up, call.charge, call.hold
        )
        for error in reply.message.errors:
            self._metrics.user_error(STATUS_NAMES[error.code])
        return reply.to_bytes()

    async def _encode(self, data: bytes, time_left: TimeLeft) -> bytes:
        began_s = perf_counter()
        snapshot = self._live.current()
        admitted = self._admit(snapshot, time_left)
        message = decode(retrieval_pb2.EncodeRequest, data)
        request = check_encode(message, snapshot, self._settings)
        result, _ = await self._submit(request, time_left, admitted, began_s)
        began_s = perf_counter()
        reply = replies.encode_reply(result, snapshot).SerializeToString()
        CURRENT_CALL.get().seconds.append(("reply", perf_counter() - began_s))
        return reply

    async def _info(self, data: bytes, _: TimeLeft) -> bytes:
        decode(retrieval_pb2.InfoRequest, data)
        reply = replies.info_reply(
            self._live.current(),
            self._settings,
            failed_version=self._live.failed_version,
            failure=self._live.failure,
            hidden_failure=self._live.hidden_failure,
            server_version=__version__,
            is_browned_out=self._brown_out.is_on,
            history_store=self._histories.kind,
            history_failure=self._histories.failure,
        )
        return reply.SerializeToString()

    async def _record_events(self, data: bytes, time_left: TimeLeft) -> bytes:
        call = CURRENT_CALL.get()
        return await self._histories.record_events(data, time_left, self._live.current(), call)

    async def _get_history(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._histories.get_history(data, time_left)

    async def _forget_user(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._histories.forget_user(data, time_left)

    def _admit(self, snapshot: Snapshot, time_left: TimeLeft) -> BatchGroup:
        """Reject a call before it is parsed, where even a default search would be rejected."""
        group = BatchGroup(version=id(snapshot), relative_cost=1)
        wait_ms = self._batcher.wait_ms(group)
        self._brown_out.observe(wait_ms)
        self._batcher.admit(group, time_left_s=time_left(), wait_ms=wait_ms)
        return group

    def _with_current_effort(self, request: CheckedRequest) -> CheckedRequest:
        """Return the request; in a brown-out, a default search gets a lower effort."""
        if request.options is not None or not request.num_candidates:
            return request
        effort = self._brown_out.effort(request.snapshot.manifest.index)
        if effort is None:
            return request
        self._metrics.browned_out()
        return request._replace(options=SearchOptions(effort=effort))

    async def _submit(
        self, request: CheckedRequest, time_left: TimeLeft, admitted: BatchGroup, began_s: float
    ) -> tuple[RequestResult, int]:
        """Return the result of a request, and how long it queued (µs). Its check began at `began_s`."""
        call = CURRENT_CALL.get()
        queued_s = perf_counter()
        result, queue_us = await self._batcher.submit(request, time_left_s=time_left(), admitted=admitted)
        call.seconds += (("check", queued_s - began_s), ("queue", queue_us / 1e6))
        if self._has_stages and result.query_result is not None:
            call.stages = stages_of(result.query_result.times, queue_us, queued_s)
        return result, queue_us

    def _sample_recall(self, result: RequestResult, snapshot: Snapshot) -> None:
        """Report a sample of the results whose recall an exact search can measure."""
        if self._on_sample is None or self._random.random() >= self._settings.recall_sample:
            return
        found = result.query_result
        if found is None or snapshot.filter_cache.hidden is not None:
            return
        # Without hidden items, the version's items of an answer are the best ones among its own.
        rows = found.merged.rows_M[found.merged.rows_M < snapshot.manifest.items.num_items]
        excluded = found.query.excluded_rows
        if not len(rows):
            return
        options = found.query.options
        if found.query.merge_policy is MAX_SCORE and not (options and options.conditions):
            self._on_sample(
                RecallSample(
                    path=str(snapshot.path),
                    interests=b64encode(found.interests_KD.tobytes()).decode(),
                    rows=rows.tolist(),
                    excluded=excluded[excluded < snapshot.manifest.items.num_items].tolist(),
                )
            )
