"""The calls of `re4.v1.Retrieval`. Each call is answered by one version.

Handlers take and return bytes, so that a message that cannot be parsed gets the right status.
"""

import asyncio
import logging
import math
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random
from time import perf_counter, perf_counter_ns
from typing import Final, Protocol, TypeAlias

from google.protobuf.message import Message

from re4 import __version__
from re4.common.errors import OverloadError, RateError, Re4Error, ShedError, TooLateError, UnreadRepliesError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import candidate_encoding, replies
from re4.serving.api.batch_handler import RequestResult, answer_batch, batch_group
from re4.serving.api.batch_retrieve import batch_retrieve
from re4.serving.api.catalogue_calls import Steps, find_items, finish, get_items, list_values
from re4.serving.api.early_rejection import EarlyRejections, Overload
from re4.serving.api.fold_in import FoldIn
from re4.serving.api.history_calls import HistoryCalls
from re4.serving.api.item_calls import ItemCalls
from re4.serving.api.shadow import Shadow
from re4.serving.api.validation import CheckedRequest, check_encode, check_retrieve
from re4.serving.auth.authenticator import Authenticator
from re4.serving.auth.tokens import Scope
from re4.serving.batching.batcher import Batcher, QueuedRequest
from re4.serving.batching.brown_out import BrownOut
from re4.serving.batching.queue import BatchGroup
from re4.serving.batching.rejection_pacing import SINGLE_BURST, SINGLE_PER_S, RejectionPacer, RejectionQuota
from re4.serving.batching.reply_memory import ReplyMemory
from re4.serving.host.cgroups import usable_cores
from re4.serving.host.threads import limit_openmp_threads
from re4.serving.observability.call_context import CURRENT_CALL, REQUEST_ID, Call, stages_of
from re4.serving.observability.metrics import CallMetrics
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.protocol.decoding import decode
from re4.serving.protocol.status_codes import STATUS_NAMES, StatusCode, status_of
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.merging import MAX_SCORE, soft_quota
from re4.serving.settings import ServerSettings
from re4.serving.transports.transport import (
    RETRY_PUSHBACK,
    Answer,
    Method,
    ResponseMetadata,
    ServerCall,
    StatusError,
    WholeCall,
)
from re4.serving.versions.canary import VersionRouter
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

SERVICE_NAME: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name

_MAX_BLOCK_SHARED_CORE_MS: Final = 50.0
"""How long a batch may block the event loop where the worker thread has no core of its own. A
worker thread would only take turns with the event loop on one core, and arriving calls would wait
all the same."""

_MAX_BLOCK_OWN_CORE_MS: Final = 5.0
"""The same where the worker thread has its own core. The way of a lone call to a thread and back
costs time; where many calls wait, it is better to read them meanwhile."""

_MAX_BLOCK_BATCH_TRANSPORT_MS: Final = 250.0
"""The same where the transport reads calls in threads of its own. A batch in the worker thread would
take turns with rejections under the interpreter's lock: batches get slower, so more calls are
rejected, and so on."""

_OVER_SHARE: Final = 0.1
"""A flood is over when a new call would wait this share of the allowed time."""
_TITLES_PER_USER: Final = 1_000
"""A search of so many titles is charged to the caller's rate as one user: it takes about 0.2 ms of CPU."""

_log = logging.getLogger(__name__)

TimeLeft: TypeAlias = Callable[[], float | None]
"""Seconds until the caller's deadline; None where there is none."""
AnswerBytes: TypeAlias = Callable[[bytes, TimeLeft], Awaitable[bytes]]
"""From a request to a reply, both bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batched:
    """A method with one request for the pipeline a call. Calls of all such methods share batches."""

    check: Callable[[bytes, Snapshot], CheckedRequest]
    """Decodes and checks a message."""
    reply: Callable[[RequestResult, int, CheckedRequest], bytes]
    """Returns the reply of a result that waited so many microseconds for its batch."""


class CallListener(Protocol):
    """Observes the calls that ended."""

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Observe a call that ended: its status, the status' details, and how long it took."""

    def left_out(self, num_calls: int) -> None:
        """Observe that so many calls were rejected, without the facts of each."""


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
        authenticator: Authenticator | None = None,
        listeners: Sequence[CallListener] = (),
        *,
        has_stages: bool = False,
        has_batch_transport: bool = False,
        worker_thread: ThreadPoolExecutor | None = None,
        router: VersionRouter | None = None,
        on_sample: Callable[[RecallSample], None] | None = None,
    ) -> None:
        """Start without a call.

        Args:
            live: The version that answers.
            settings: Of the server.
            metrics: Counts the calls.
            authenticator: Checks tokens; None where calls need none.
            listeners: Observers of calls that ended.
            has_stages: Whether a listener uses `Call.stages`.
            has_batch_transport: Whether the transport hands over many calls at once.
            worker_thread: The only thread that may run the pipeline; None to make one.
            router: Chooses the version of each call; None where the live one answers all.
            on_sample: Takes results whose recall can be measured; None to measure none.
        """
        candidate_encoding.open_compiled()  # compiled now, not by the first call
        soft_quota.open_compiled()
        self._live = live
        self._router = router or VersionRouter()
        self._settings = settings
        self._metrics = metrics
        self._authenticator = authenticator
        self._listeners = tuple(listeners)
        self._has_stages = has_stages
        # A batch transport reads calls in threads of its own while the event loop runs a batch.
        has_own_core = worker_thread is not None or settings.num_processes < usable_cores()
        max_block_ms = _MAX_BLOCK_OWN_CORE_MS if has_own_core else _MAX_BLOCK_SHARED_CORE_MS
        if has_batch_transport:
            max_block_ms = _MAX_BLOCK_BATCH_TRANSPORT_MS
        self._batcher: Batcher[CheckedRequest, RequestResult] = Batcher(
            self._run,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_queue_ms,
            max_delay_ms=settings.max_batch_delay_ms,
            max_block_ms=max_block_ms if worker_thread is None else 0.0,
            has_own_core=has_own_core,
            waits_for_quiet=not has_batch_transport,
            group_of=batch_group,
            on_thread_start=limit_openmp_threads,
            worker_thread=worker_thread,
        )
        self._histories = HistoryCalls(settings, metrics)
        self._items = ItemCalls(live, settings, metrics)
        self._fold_in = FoldIn(
            live,
            histories=self._histories.newest_items,
            encode=lambda requests: self._batcher.enqueue(requests, time_left_s=None, is_admitted=True),
            write=self._items.write_evidence,
        )
        if settings.fold_in:
            self._histories.on_recorded = self._fold_in.offer
        self._catalogue_turn = asyncio.Lock()
        self._rejections = RejectionPacer()
        self._quota = RejectionQuota(per_s=SINGLE_PER_S, burst=SINGLE_BURST)
        self._early = EarlyRejections(self._overload, self._count_early, authenticator)
        self._has_batch_transport = has_batch_transport
        self._on_sample = on_sample
        self._random = Random()  # noqa: S311 (nothing secret)
        self._brown_out = BrownOut(settings.max_queue_ms, settings.brown_out_recall_floor)
        limits = settings.limits
        self._reply_memory = ReplyMemory(limits.max_reply_bytes, limits.max_reply_bytes_per_caller)
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended: list[tuple[Call, str, float]] = []
        self._shadow = Shadow(self._router, settings, metrics, self._batcher, self._sample_recall)

    async def wait_for_worker_thread(self) -> None:
        """Return when the thread that runs batches has finished its present one."""
        await self._batcher.wait_for_worker_thread()

    def methods(self) -> list[Method]:
        """Return the methods of the service, for any transport."""
        batched = {
            "Retrieve": (_Batched(check=self._check_retrieve, reply=self._retrieve_reply), Scope.RETRIEVE),
            "Encode": (_Batched(check=self._check_encode, reply=_encode_reply), Scope.RETRIEVE),
        }
        answers: dict[str, tuple[AnswerBytes, Scope]] = {
            "BatchRetrieve": (self._batch_retrieve, Scope.RETRIEVE),
            "Info": (self._info, Scope.RETRIEVE),
            "UpsertItems": (self._upsert_items, Scope.EDIT_ITEMS),
            "RemoveItems": (self._remove_items, Scope.EDIT_ITEMS),
            "RecordEvents": (self._record_events, Scope.RECORD_EVENTS),
            "GetHistory": (self._get_history, Scope.READ_HISTORIES),
            "ForgetUser": (self._forget_user, Scope.RECORD_EVENTS),
            "GetItems": (self._get_items, Scope.RETRIEVE),
            "FindItems": (self._find_items, Scope.RETRIEVE),
            "ListValues": (self._list_values, Scope.RETRIEVE),
        }
        methods = [
            Method(
                path=f"/{SERVICE_NAME}/{name}",
                answer=self._guarded(name, partial(self._answer_batched, method), scope),
                answer_many=partial(self._answer_many, name, method, scope),
                early=self._early.of_method(name, scope),
            )
            for name, (method, scope) in batched.items()
        ]
        return methods + [
            Method(path=f"/{SERVICE_NAME}/{name}", answer=self._guarded(name, answer, scope))
            for name, (answer, scope) in answers.items()
        ]

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
        self._fold_in.close()
        self._items.close()

    def _run(self, requests: Sequence[CheckedRequest]) -> Sequence[RequestResult | Exception]:
        """Answer a batch of one version, in the worker thread or the event loop's."""
        results = answer_batch(requests, self._settings.fallback, self._histories.popularity)
        found = (each.query_result for each in results if isinstance(each, RequestResult))
        times = next((one.times for one in found if one is not None), None)
        if times is not None:
            try:
                asyncio.get_running_loop().call_soon(self._metrics.batch, times)
            except RuntimeError:  # in the worker thread, which delays no call
                self._metrics.batch(times)
        return results

    def _guarded(self, name: str, answer_bytes: AnswerBytes, scope: Scope) -> Answer:
        """Return the answer to a call that turns errors into statuses, and counts the call."""

        async def answer(server_call: ServerCall) -> bytes:
            running = _RunningCall(self, name, server_call)
            code, details = StatusCode.CANCELLED, ""
            try:
                running.admit_caller(scope)
                data = await server_call.read()
                running.begin()
                reply = await answer_bytes(data, server_call.time_left)
                running.finish(reply)
                code = StatusCode.OK
                return reply
            except Exception as error:
                status = running.status_of(error)
                code, details = status.code, status.details
                try:
                    raise status from None
                finally:
                    del status  # its traceback refers to this frame: a cycle, which would keep the version
            finally:
                running.end(code, details)

        return answer

    def _answer_many(
        self, name: str, method: _Batched, scope: Scope, server_calls: Sequence[WholeCall]
    ) -> None:
        """Answer calls that arrived together without a task for each: a lone one now, others in a batch."""
        group = _default_group(self._live.snapshot)
        wait_ms: float | None = self._batcher.wait_ms(group)
        num_admitted, has_queued = self._batcher.num_admitted(group, wait_ms), False
        for server_call in server_calls[:num_admitted]:
            running = _RunningCall(self, name, server_call)
            try:
                running.admit_caller(scope)
                running.begin()
                snapshot, time_left_s = self._live.current(), server_call.time_left()
                self._admit(group, time_left_s, wait_ms)
                wait_ms = None  # the next one waits behind this one
                request = method.check(server_call.message, snapshot)
                if request.user_id:
                    queueing = asyncio.get_running_loop().create_task(
                        self._queue_with_history(running, method, server_call, request, group)
                    )
                    queueing.add_done_callback(running.end_cancelled)
                    server_call.on_cancel(queueing.cancel)
                else:
                    entry = self._entry(running, method, server_call, request, group, time_left_s)
                    if len(server_calls) > 1 or not self._batcher.run_alone(entry):
                        self._batcher.add(entry)
                        has_queued = True
            except Exception as error:
                running.fail(server_call, error)
        if num_admitted < len(server_calls):
            self._reject_many(name, scope, server_calls[num_admitted:])
        if has_queued:
            self._batcher.start()

    def _reject_many(self, name: str, scope: Scope, server_calls: Sequence[WholeCall]) -> None:
        """Reject calls for which even a default search would wait too long.

        Each would be rejected alone, too, by `Batcher.admit`.
        """
        self._early.is_armed = True
        self._quota.take(len(server_calls))
        group = _default_group(self._live.snapshot)
        wait_ms = self._batcher.wait_ms(group)
        self._brown_out.observe(wait_ms)
        error = self._batcher.rejection(group, len(server_calls))
        code, details = status_of(type(error)), str(error)
        pushback = (RETRY_PUSHBACK, str(error.retry_after_ms))
        num_rejected = 0
        for server_call in server_calls:
            running = _RunningCall(self, name, server_call)
            try:
                running.admit_caller(scope)
                time_left_s = server_call.time_left()
                if time_left_s is not None and time_left_s * 1e3 <= wait_ms:
                    self._batcher.admit(group, time_left_s=time_left_s, wait_ms=wait_ms)
                num_rejected += 1
                call = running.call
                server_call.fail(StatusError(code, details, (pushback, (REQUEST_ID, call.request_id))))
                running.end(code, details)
            except Exception as other:
                running.fail(server_call, other)
        self._metrics.shed(_shed_reason(error), num_rejected)
        self.pace_rejections()

    def _overload(self, num_at_once: int) -> Overload | None:
        """Return the state of the queue for the calls that arrive now; None where it is short."""
        group = _default_group(self._live.snapshot)
        wait_ms = self._batcher.wait_ms(group)
        self._brown_out.observe(wait_ms)
        if wait_ms <= _OVER_SHARE * self._settings.max_queue_ms:
            return None
        return Overload(
            self._batcher.num_admitted(group) + self._quota.available(),
            wait_ms,
            self._batcher.rejection(group, 0),
            num_at_once,
        )

    def _count_early(self, turn: Overload) -> None:
        """Count the calls that were rejected by their header fields."""
        num_calls: Counter[tuple[str, bool]] = Counter()
        codes = {is_late: status_of(TooLateError if is_late else ShedError).name for is_late in (False, True)}
        for (method, is_late, caller), num_rejected in turn.num_rejected.items():
            num_calls[method, is_late] += num_rejected
            if caller is not None:
                self._metrics.caller(caller.name, codes[is_late], num_rejected)
        for (method, is_late), num_rejected in num_calls.items():
            self._metrics.calls(method, codes[is_late], [0.0] * num_rejected)
            self._metrics.shed("deadline" if is_late else "overload", num_rejected)
        num_rejected = num_calls.total()
        self._batcher.rejection(_default_group(self._live.snapshot), num_rejected)
        for listener in self._listeners:
            listener.left_out(num_rejected)
        self.pace_rejections()

    def pace_rejections(self) -> None:
        """Leave the core to the worker thread for a moment, where that runs a batch."""
        if self._batcher.is_batch_running:
            self._rejections.pace()

    def _entry(
        self,
        running: "_RunningCall",
        method: _Batched,
        server_call: WholeCall,
        request: CheckedRequest,
        admitted: BatchGroup,
        time_left_s: float | None,
    ) -> "_QueuedCall":
        """Return a checked request for the queue of the batcher."""
        group = batch_group(request)
        if group != admitted:
            self._batcher.admit(group, time_left_s=time_left_s)
        entry = _QueuedCall(running, method, server_call, request, group, time_left_s)
        server_call.on_cancel(entry.cancel)
        return entry

    async def _queue_with_history(
        self,
        running: "_RunningCall",
        method: _Batched,
        server_call: WholeCall,
        request: CheckedRequest,
        admitted: BatchGroup,
    ) -> None:
        """Queue a request with the stored history of its user, and start a batch."""
        try:
            request = await self._histories.with_history(request, server_call.time_left, running.call)
            time_left_s = server_call.time_left()
            self._batcher.add(self._entry(running, method, server_call, request, admitted, time_left_s))
        except Exception as error:
            running.fail(server_call, error)
        else:
            self._batcher.start()

    def _count_ended(self) -> None:
        """Count the calls that ended since the last turn of the event loop."""
        ended, self._ended = self._ended, []
        calls: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        stages: defaultdict[str, list[float]] = defaultdict(list)
        callers: Counter[tuple[str, str]] = Counter()
        for call, code, seconds in ended:
            calls[call.method, code].append(seconds)
            for stage, took_s in call.seconds:
                stages[stage].append(took_s)
            if call.caller is not None:
                callers[call.caller.name, code] += 1
        for (method, code), took in calls.items():
            self._metrics.calls(method, code, took)
        for stage, took in stages.items():
            self._metrics.stage(stage, took)
        for (name, code), num_calls in callers.items():
            self._metrics.caller(name, code, num_calls)
        for call, code, seconds in ended:
            if call.role is not None:
                self._metrics.canary_call(call.role, code, seconds)

    def _notify(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Notify the listeners that a call ended. An error of a listener does not fail the call."""
        for listener in self._listeners:
            try:
                listener.ended(call, code, details, seconds)
            except Exception:
                _log.exception("%s cannot observe a call", type(listener).__name__)

    def _check_retrieve(self, data: bytes, snapshot: Snapshot) -> CheckedRequest:
        message = decode(retrieval_pb2.RetrieveRequest, data)
        chosen = self._chosen_version(snapshot, message.user_id)
        return self._with_current_effort(check_retrieve(message, chosen, self._settings))

    def _chosen_version(self, live: Snapshot, user_id: str = "") -> Snapshot:
        """Return the version that answers the running call: the live one, or the canary."""
        canary = self._router.canary
        if canary is None or canary.is_shadow:
            return live
        call = CURRENT_CALL.get()
        chosen = self._router.answers_with(user_id or call.request_id)
        call.role = "live" if chosen is None else "canary"
        return chosen or live

    def _retrieve_reply(self, result: RequestResult, queue_us: int, request: CheckedRequest) -> bytes:
        self._sample_recall(result, request.snapshot)
        return replies.retrieve_reply(result, queue_us, request)

    def _check_encode(self, data: bytes, snapshot: Snapshot) -> CheckedRequest:
        message = decode(retrieval_pb2.EncodeRequest, data)
        return check_encode(message, self._chosen_version(snapshot), self._settings)

    async def _answer_batched(self, method: _Batched, data: bytes, time_left: TimeLeft) -> bytes:
        """Answer one call of a method whose calls share batches."""
        began_s = perf_counter()
        snapshot = self._live.current()
        admitted = _default_group(snapshot)
        self._admit(admitted, time_left())
        request = method.check(data, snapshot)
        if request.user_id:
            request = await self._histories.with_history(request, time_left, CURRENT_CALL.get())
        result, queue_us = await self._submit(request, time_left, admitted, began_s)
        began_s = perf_counter()
        self._shadow.offer(data, request, result)
        reply = method.reply(result, queue_us, request)
        CURRENT_CALL.get().seconds.append(("reply", perf_counter() - began_s))
        return reply

    async def _batch_retrieve(self, data: bytes, time_left: TimeLeft) -> bytes:
        snapshot = self._live.current()
        self._admit(_default_group(snapshot), time_left())
        message = decode(retrieval_pb2.BatchRetrieveRequest, data)
        snapshot = self._chosen_version(snapshot)
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

    async def _info(self, data: bytes, _: TimeLeft) -> bytes:
        decode(retrieval_pb2.InfoRequest, data)
        reply = replies.info_reply(
            self._live.current(),
            self._settings,
            failed_version=self._live.failed_version,
            failure=self._live.failure,
            hidden_failure=self._live.hidden_failure,
            live_sequence=self._live.live_sequence,
            live_failure=self._live.live_failure,
            server_version=__version__,
            is_browned_out=self._brown_out.is_on,
            history_store=self._histories.kind,
            history_failure=self._histories.failure,
            router=self._router,
        )
        return reply.SerializeToString()

    async def _record_events(self, data: bytes, time_left: TimeLeft) -> bytes:
        call = CURRENT_CALL.get()
        return await self._histories.record_events(data, time_left, self._live.current(), call)

    async def _get_history(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._histories.get_history(data, time_left)

    async def _forget_user(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._histories.forget_user(data, time_left)

    async def _upsert_items(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._items.upsert_items(data, time_left, CURRENT_CALL.get())

    async def _remove_items(self, data: bytes, time_left: TimeLeft) -> bytes:
        return await self._items.remove_items(data, time_left, CURRENT_CALL.get())

    async def _get_items(self, data: bytes, time_left: TimeLeft) -> bytes:
        request, snapshot = decode(retrieval_pb2.GetItemsRequest, data), self._live.current()
        steps = get_items(request, snapshot, self._settings.limits)
        if request.return_vectors and snapshot.are_vectors_remote:
            reply: retrieval_pb2.GetItemsReply = await asyncio.to_thread(finish, steps)
            return reply.SerializeToString()
        return await self._in_steps(steps, time_left)

    async def _find_items(self, data: bytes, time_left: TimeLeft) -> bytes:
        request, snapshot = decode(retrieval_pb2.FindItemsRequest, data), self._live.current()
        if request.text and snapshot.has_titles:
            CURRENT_CALL.get().charge(1 + snapshot.num_items // _TITLES_PER_USER)
        return await self._in_steps(find_items(request, snapshot, self._settings.limits), time_left)

    async def _list_values(self, data: bytes, time_left: TimeLeft) -> bytes:
        request = decode(retrieval_pb2.ListValuesRequest, data)
        return await self._in_steps(list_values(request, self._live.current()), time_left)

    async def _in_steps(self, steps: Steps[Message], time_left: TimeLeft) -> bytes:
        """Return the reply of a call that reads the catalogue, with a turn of the event loop after each step.

        One such call runs at a time, so that several delay other calls no more than one does.

        Raises:
            TooLateError: the deadline passed meanwhile.
        """
        async with self._catalogue_turn:
            while True:
                left_s = time_left()
                if left_s is not None and left_s <= 0:
                    raise TooLateError("the deadline passed while the catalogue was read")
                try:
                    next(steps)
                except StopIteration as end:
                    reply: Message = end.value
                    return reply.SerializeToString()
                await asyncio.sleep(0)

    def _admit(self, group: BatchGroup, time_left_s: float | None, wait_ms: float | None = None) -> None:
        """Reject a call before it is parsed, where even a default search would be rejected.

        Args:
            group: Of default searches.
            time_left_s: Seconds until the caller's deadline; None for none.
            wait_ms: How long a default search would wait now; None to compute it.
        """
        if wait_ms is None:
            wait_ms = self._batcher.wait_ms(group)
        self._brown_out.observe(wait_ms)
        self._batcher.admit(group, time_left_s=time_left_s, wait_ms=wait_ms)

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
        """Report a sample of the results whose recall an exact search can measure.

        Of a canary's results, a larger share: it is to have about as many samples as the live version.
        """
        sampled, canary = self._settings.recall_sample, self._router.canary
        if snapshot.is_canary and canary is not None:
            sampled /= canary.share
        if self._on_sample is None or self._random.random() >= sampled or snapshot.are_vectors_remote:
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


def _default_group(snapshot: Snapshot | None) -> BatchGroup:
    """Return the group of default searches."""
    is_remote = snapshot is not None and snapshot.is_index_remote
    return BatchGroup(id(snapshot), 1, is_remote=is_remote)


def _encode_reply(result: RequestResult, _: int, request: CheckedRequest) -> bytes:
    return replies.encode_reply(result, request.snapshot).SerializeToString()


class _RunningCall:
    """One call of a service from its arrival to its end: admission, accounts, status, metrics."""

    __slots__ = ("_has_begun", "_held", "_server_call", "_service", "began_s", "call")

    def __init__(self, service: RetrievalService, name: str, server_call: ServerCall) -> None:
        self.began_s = perf_counter()
        self.call = Call(name, server_call.metadata)
        self._service = service
        self._server_call = server_call
        self._has_begun = False
        CURRENT_CALL.set(self.call)

    def admit_caller(self, scope: Scope) -> None:
        """Check the caller's token, its scope and its rate.

        Raises:
            UnauthenticatedError, PermissionDeniedError, RateError: the call is rejected.
        """
        authenticator = self._service._authenticator
        if authenticator is not None:
            self.call.caller = authenticator.admit(self.call.metadata, scope, self.call.method)

    def begin(self) -> None:
        """Begin the answer: the message is there.

        Raises:
            UnreadRepliesError: too many earlier replies are not read yet.
        """
        service, caller = self._service, self.call.caller
        self.began_s = perf_counter()
        self._has_begun = True
        service._num_in_flight += 1
        service._idle.clear()
        self._held = service._reply_memory.begin(self._server_call.peer if caller is None else caller.name)
        self._server_call.on_end(self._held.release, self._held.recount)
        self.call.hold = self._held.grow

    def finish(self, reply: bytes) -> None:
        """Count the bytes of a reply that is about to be sent.

        Raises:
            UnreadRepliesError: as for `begin`.
        """
        self._held.finish(len(reply))

    def status_of(self, error: BaseException) -> StatusError:
        """Return the status of a call that failed; count, log and pace where that is due."""
        service, name = self._service, self.call.method
        if isinstance(error, StatusError):
            return error
        pushback: ResponseMetadata = ()
        if isinstance(error, Re4Error):
            code, details = status_of(type(error)), str(error)
            if isinstance(error, ShedError) and not service._has_batch_transport:
                service.pace_rejections()
            if isinstance(error, OverloadError):
                service._metrics.shed(_shed_reason(error))
                if error.retry_after_ms is not None:
                    pushback = ((RETRY_PUSHBACK, str(error.retry_after_ms)),)
            if code is StatusCode.INTERNAL:
                _log.error("%s: %s", name, error)
        else:
            _log.error("%s failed", name, exc_info=error)
            code, details = StatusCode.INTERNAL, f"{name} failed; the server's log says why"
        return StatusError(code, details, (*pushback, (REQUEST_ID, self.call.request_id)))

    def fail(self, server_call: WholeCall, error: BaseException) -> None:
        """End a whole call with the status of an error."""
        status = self.status_of(error)
        server_call.fail(status)
        self.end(status.code, status.details)

    def end_cancelled(self, task: "asyncio.Task[None]") -> None:
        """Account for the end of a call whose task was cancelled."""
        if task.cancelled():
            self.end(StatusCode.CANCELLED, "")

    def add_stages(self, result: RequestResult, queue_us: int, queued_s: float) -> None:
        """Note the stages of the call where a listener uses them."""
        if self._service._has_stages and result.query_result is not None:
            self.call.stages = stages_of(result.query_result.times, queue_us, queued_s)

    def compare(self, data: bytes, request: CheckedRequest, result: RequestResult) -> None:
        """Offer the answer to the shadow, if there is one."""
        self._service._shadow.offer(data, request, result)

    def discard(self, entry: "_QueuedCall") -> None:
        """Remove the call from the queue of the batcher."""
        self._service._batcher.discard(entry)

    def end(self, code: StatusCode, details: str) -> None:
        """Account for the end of the call."""
        service, took_s = self._service, perf_counter() - self.began_s
        if self._has_begun:
            service._num_in_flight -= 1
        if not service._num_in_flight:
            service._idle.set()
        if not service._ended:  # after this turn of the event loop, for the caller waits for the reply
            asyncio.get_running_loop().call_soon(service._count_ended)
        service._ended.append((self.call, code.name, took_s))
        service._notify(self.call, code.name, details, took_s)


class _QueuedCall:
    """A call in the queue of the batcher, answered without a task."""

    __slots__ = (
        "_check_s", "_is_done", "_method", "_running", "_server_call",
        "deadline_ns", "group", "queue_us", "request", "since_ns",
    )  # fmt: skip

    def __init__(
        self,
        running: _RunningCall,
        method: _Batched,
        server_call: WholeCall,
        request: CheckedRequest,
        group: BatchGroup,
        time_left_s: float | None,
    ) -> None:
        self.request = request
        self.group = group
        self.since_ns = perf_counter_ns()
        self.deadline_ns = math.inf if time_left_s is None else self.since_ns + time_left_s * 1e9
        self.queue_us = 0
        self._running = running
        self._method = method
        self._server_call = server_call
        self._is_done = False
        self._check_s = self.since_ns / 1e9 - running.began_s

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._is_done

    def cancel(self) -> None:
        """End a call whose caller left, or whose deadline passed."""
        if not self._is_done:
            self._is_done = True
            self._running.discard(self)
            self._running.end(StatusCode.CANCELLED, "")

    def set_result(self, result: RequestResult) -> None:
        """Send the reply."""
        running, began_s = self._running, perf_counter()
        self._is_done = True
        CURRENT_CALL.set(running.call)
        try:
            running.compare(self._server_call.message, self.request, result)
            reply = self._method.reply(result, self.queue_us, self.request)
            running.call.seconds += (
                ("check", self._check_s),
                ("queue", self.queue_us / 1e6),
                ("reply", perf_counter() - began_s),
            )
            running.add_stages(result, self.queue_us, self.since_ns / 1e9)
            running.finish(reply)
        except Exception as error:
            running.fail(self._server_call, error)
            return
        self._server_call.respond(reply)
        running.end(StatusCode.OK, "")

    def set_exception(self, error: BaseException) -> None:
        """Send the status of an error."""
        self._is_done = True
        CURRENT_CALL.set(self._running.call)
        self._running.fail(self._server_call, error)
