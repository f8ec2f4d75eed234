"""The calls of `re4.v1.Retrieval`: each answered whole from one version.

Handlers take and give bytes, so that a message that cannot be parsed gets the status it deserves. Knows
nothing about processes, ports or how versions come and go.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random
from time import perf_counter
from typing import Final, Protocol, TypeAlias

import grpc

from re4 import __version__
from re4.common.errors import OverloadError, RateError, Re4Error, ShedError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import Answered, answer_all
from re4.serving.api.batch_retrieve import batch_retrieve
from re4.serving.api.decoding import decode
from re4.serving.api.validation import CheckedRequest, check_encode, check_retrieve
from re4.serving.auth.authenticator import Authenticator
from re4.serving.batching.batcher import Batcher, Finished
from re4.serving.batching.brown_out import BrownOut, lowest_effort
from re4.serving.batching.queue import Group
from re4.serving.batching.rejections import Spacing
from re4.serving.host.cgroups import usable_cores
from re4.serving.host.threads import limit_openmp_threads
from re4.serving.observability.call_context import CURRENT_CALL, REQUEST_ID, Call, stages_of
from re4.serving.observability.metrics import CallMetrics
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.protocol.status_codes import STATUS_NAMES, status_of
from re4.serving.retrieval.filtered_search import SearchTerms
from re4.serving.retrieval.merging import POLICIES
from re4.serving.settings import ServerSettings
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

SERVICE_NAME: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name

RETRY_ADVICE: Final = "grpc-retry-pushback-ms"
"""Trailing metadata of a shed call: milliseconds to wait before trying again. gRPC clients whose retry policy
includes RESOURCE_EXHAUSTED keep to it by themselves (gRFC A6)."""

_USUAL_DEPTH_BITS: Final = 9
"""Searches for up to 2^9 results share batches of full size; deeper ones stay among their own, in fewer."""

_FILTERED_WORK: Final = 4
"""What a search with a filter counts as: it may need a call of the index for itself, and a new bitmap."""

_MAX_BLOCK_MS: Final = 50.0
"""How long the event loop may stand still for a batch. Where every core has a process, a lane only takes
turns with the event loop on one core, and what is read meanwhile waits all the same."""

_MAX_BLOCK_BESIDE_MS: Final = 5.0
"""The same where the lane has a core of its own. Handing a lone call to a thread and back is felt; where many
wait, to read their calls meanwhile is worth more."""

_log = logging.getLogger(__name__)

TimeLeft: TypeAlias = Callable[[], float | None]
"""Seconds until the caller's deadline; None where there is none."""
Method: TypeAlias = Callable[[bytes, TimeLeft], Awaitable[bytes]]
"""From a request to a reply, both bytes."""
Handler: TypeAlias = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _Job:
    snapshot: Snapshot
    request: CheckedRequest


def _group_of(job: _Job) -> Group:
    search_depth, terms = job.request.search_depth, job.request.terms
    depth_bits = (search_depth - 1).bit_length() if search_depth else 0
    depth, kind = 1 << max(0, depth_bits - _USUAL_DEPTH_BITS), ""
    if terms is not None:
        # A power of two, as depths are, so that there are few groups.
        depth <<= max(0, math.ceil(math.log2(terms.effort)))
        kind = "effort" if terms.effort > 1 else ""  # less than usual slows nobody down
        if terms.conditions:
            depth, kind = depth * _FILTERED_WORK, "filtered"
    return Group(owner=id(job.snapshot), depth=depth, kind=kind)


class CallListener(Protocol):
    """Is told of every call that ended."""

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """A call ended: status, what it was told, and how long it took."""


def _shed_reason(error: OverloadError) -> str:
    """What the metric calls it."""
    if isinstance(error, ShedError):
        return "overload"
    return "rate" if isinstance(error, RateError) else "deadline"


def _note_stages(call: Call, began_s: float, done: "asyncio.Future[Finished[Answered]]") -> None:
    """Add the stages of a part of a BatchRetrieve, by its first user; none where that user got no answer."""
    if not done.cancelled() and done.exception() is None:
        answer, queue_us = done.result().result.answer, done.result().queue_us
        if answer is not None:
            call.stages += stages_of(answer.times, queue_us, began_s)


class RetrievalService:
    """Answers calls from what is live. Belongs to one event loop."""

    def __init__(
        self,
        live: LiveVersion,
        settings: ServerSettings,
        metrics: CallMetrics,
        authenticator: Authenticator | None = None,
        listeners: Sequence[CallListener] = (),
        *,
        has_stages: bool = False,
        lane: ThreadPoolExecutor | None = None,
        on_sample: Callable[[RecallSample], None] | None = None,
    ) -> None:
        """Begin without a call.

        Args:
            on_sample: Told of answers whose recall may be measured; None to measure none.
            live: What answers.
            settings: How.
            metrics: Where to count.
            authenticator: Lets calls in by their tokens; None for all.
            listeners: Who is told of calls that ended.
            has_stages: Whether any of them looks at `Call.stages`.
            lane: The one thread that may compute; None for one made here.
        """
        self._live = live
        self._settings = settings
        self._metrics = metrics
        self._authenticator = authenticator
        self._listeners = tuple(listeners)
        self._has_stages = has_stages
        has_core_beside = lane is not None or settings.num_processes < usable_cores()
        max_block_ms = _MAX_BLOCK_BESIDE_MS if has_core_beside else _MAX_BLOCK_MS
        self._batcher: Batcher[_Job, Answered] = Batcher(
            self._run,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_queue_ms,
            max_delay_ms=settings.max_batch_delay_ms,
            max_block_ms=max_block_ms if lane is None else 0.0,
            has_core_beside=has_core_beside,
            group_of=_group_of,
            on_lane_start=limit_openmp_threads,
            lane=lane,
        )
        self._spacing = Spacing()
        self._on_sample = on_sample
        self._random = Random()  # noqa: S311 (nothing secret)
        self._brown_out = BrownOut(settings.max_queue_ms)
        self._frugal: tuple[Snapshot | None, SearchTerms | None] = (None, None)
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def handlers(self) -> dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]:
        """What a gRPC server dispatches calls by: a handler for each method."""
        methods: dict[str, Method] = {
            "Retrieve": self._retrieve,
            "BatchRetrieve": self._batch_retrieve,
            "Encode": self._encode,
            "Info": self._info,
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(name, method))
            for name, method in methods.items()
        }

    async def wait_idle(self) -> None:
        """Return when no call is in flight."""
        await self._idle.wait()

    @property
    def is_idle(self) -> bool:
        """Whether no call is in flight."""
        return self._idle.is_set()

    def close(self) -> None:
        """End the compute lane."""
        self._batcher.close()

    def _run(self, jobs: Sequence[_Job]) -> Sequence[Answered | Exception]:
        """Answer a batch of one version, in the compute lane."""
        answered = answer_all([job.request for job in jobs], jobs[0].snapshot, self._settings.fallback)
        answers = (each.answer for each in answered if isinstance(each, Answered))
        times = next((answer.times for answer in answers if answer is not None), None)
        if times is not None:
            try:
                asyncio.get_running_loop().call_soon(self._metrics.batch, times)
            except RuntimeError:  # in the lane, for which nobody waits
                self._metrics.batch(times)
        return answered

    def _guarded(self, name: str, method: Method) -> Handler:
        """A method with errors turned into statuses, counted while it runs."""

        async def guarded(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            began_s = perf_counter()
            loop = asyncio.get_running_loop()
            call = Call(name, context.invocation_metadata)
            CURRENT_CALL.set(call)
            code, details = grpc.StatusCode.CANCELLED, ""
            self._num_in_flight += 1
            self._idle.clear()
            advice: tuple[tuple[str, str], ...] = ()
            try:
                if self._authenticator is not None:
                    call.caller = self._authenticator.admit(call.metadata)
                reply = await method(data, context.time_remaining)
                code = grpc.StatusCode.OK
                return reply
            except Re4Error as error:
                code, details = status_of(type(error)), str(error)
                if isinstance(error, ShedError) and self._batcher.is_lane_busy:
                    self._spacing.keep()
                if isinstance(error, OverloadError):
                    self._metrics.shed(_shed_reason(error))
                    if error.retry_after_ms is not None:
                        advice = ((RETRY_ADVICE, str(error.retry_after_ms)),)
                if code is grpc.StatusCode.INTERNAL:
                    _log.error("%s: %s", name, error)
            except Exception:
                _log.exception("%s failed", name)
                code, details = grpc.StatusCode.INTERNAL, f"{name} failed; the server's log says why"
            finally:
                took_s = perf_counter() - began_s
                self._num_in_flight -= 1
                if not self._num_in_flight:
                    self._idle.set()
                loop.call_soon(self._count, call, code.name, took_s)
                self._tell(call, code.name, details, took_s)
            return await context.abort(code, details, (*advice, (REQUEST_ID, call.request_id)))

        return guarded

    def _count(self, call: Call, code: str, seconds: float) -> None:
        """Count a call that ended."""
        self._metrics.call(call.method, code, seconds)
        for stage, took_s in call.seconds:
            self._metrics.stage(stage, took_s)
        if call.caller is not None:
            self._metrics.caller(call.caller.name, code)

    def _tell(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Tell the listeners that a call ended; what goes wrong with one of them is not the call's."""
        for listener in self._listeners:
            try:
                listener.ended(call, code, details, seconds)
            except Exception:
                _log.exception("%s cannot be told of a call", type(listener).__name__)

    async def _retrieve(self, data: bytes, time_left: TimeLeft) -> bytes:
        began_s = perf_counter()
        snapshot = self._live.current()
        admitted = self._admit(snapshot, time_left)
        request = decode(retrieval_pb2.RetrieveRequest, data)
        checked = check_retrieve(request, snapshot, self._settings.limits)
        checked = self._as_hard_as_now(checked, snapshot)
        answered, queue_us = await self._submit(checked, snapshot, time_left, admitted, began_s)
        if self._on_sample is not None and self._random.random() < self._settings.recall_sample:
            self._offer(answered, snapshot, self._on_sample)
        began_s = perf_counter()
        reply = replies.retrieve_reply(answered, queue_us, checked, snapshot)
        CURRENT_CALL.get().seconds.append(("reply", perf_counter() - began_s))
        return reply

    def _offer(
        self, answered: Answered, snapshot: Snapshot, on_sample: Callable[[RecallSample], None]
    ) -> None:
        """Offer an answer for its recall to be measured, where an exact search can say what it should be."""
        query, answer = answered.query, answered.answer
        merge = query.merge or POLICIES[self._settings.merge_policy]
        is_filtered = query.terms is not None and bool(query.terms.conditions)
        if merge is not POLICIES["max-score"] or is_filtered or snapshot.selections.hidden is not None:
            return
        if answer is not None and len(answer.merged.rows_M):
            on_sample(
                RecallSample(
                    path=str(snapshot.path),
                    interests=answer.interests_KD.tolist(),
                    rows=answer.merged.rows_M.tolist(),
                    excluded=query.excluded_rows.tolist(),
                )
            )

    async def _batch_retrieve(self, data: bytes, time_left: TimeLeft) -> bytes:
        snapshot = self._live.current()
        self._admit(snapshot, time_left)
        request = decode(retrieval_pb2.BatchRetrieveRequest, data)
        call = CURRENT_CALL.get()
        call.owe(len(request.users) - 1)

        def enqueue(
            requests: Sequence[CheckedRequest], is_let_in: bool
        ) -> list["asyncio.Future[Finished[Answered]]"]:
            jobs = [_Job(snapshot, self._as_hard_as_now(each, snapshot)) for each in requests]
            futures = self._batcher.enqueue(jobs, time_left_s=time_left(), is_let_in=is_let_in)
            if self._has_stages and futures:
                futures[0].add_done_callback(partial(_note_stages, call, perf_counter()))
            return futures

        reply = await batch_retrieve(request, snapshot, self._settings, enqueue)
        for error in reply.message.errors:
            self._metrics.user_error(STATUS_NAMES[error.code])
        return reply.to_bytes()

    async def _encode(self, data: bytes, time_left: TimeLeft) -> bytes:
        began_s = perf_counter()
        snapshot = self._live.current()
        admitted = self._admit(snapshot, time_left)
        request = decode(retrieval_pb2.EncodeRequest, data)
        checked = check_encode(request, snapshot, self._settings.limits)
        answered, _ = await self._submit(checked, snapshot, time_left, admitted, began_s)
        began_s = perf_counter()
        reply = replies.encode_reply(answered, snapshot).SerializeToString()
        CURRENT_CALL.get().seconds.append(("reply", perf_counter() - began_s))
        return reply

    def _admit(self, snapshot: Snapshot, time_left: TimeLeft) -> Group:
        """Turn a call away before it is even read, where not so much as a usual search would be let in."""
        group = Group(owner=id(snapshot), depth=1)
        wait_ms = self._batcher.wait_ms(group)
        self._brown_out.observe(wait_ms)
        self._batcher.admit(group, time_left_s=time_left(), wait_ms=wait_ms)
        return group

    def _as_hard_as_now(self, request: CheckedRequest, snapshot: Snapshot) -> CheckedRequest:
        """The request, which in a brown-out looks less hard, where it is a usual one."""
        floor = self._settings.brown_out_recall_floor
        if floor is None or not self._brown_out.is_on or request.terms is not None:
            return request
        if self._frugal[0] is not snapshot:
            effort = lowest_effort(snapshot.manifest.index, floor)
            self._frugal = snapshot, None if effort is None else SearchTerms(effort=effort)
        terms = self._frugal[1]
        if terms is None or not request.num_candidates:
            return request
        self._metrics.browned_out()
        return request._replace(terms=terms)

    async def _submit(
        self,
        checked: CheckedRequest,
        snapshot: Snapshot,
        time_left: TimeLeft,
        admitted: Group,
        began_s: float,
    ) -> Finished[Answered]:
        """Have a request answered that was checked from `began_s` on."""
        job, call = _Job(snapshot, checked), CURRENT_CALL.get()
        queued_s = perf_counter()
        finished = await self._batcher.submit(job, time_left_s=time_left(), admitted=admitted)
        call.seconds += (("check", queued_s - began_s), ("queue", finished.queue_us / 1e6))
        answer = finished.result.answer
        if self._has_stages and answer is not None:
            call.stages = stages_of(answer.times, finished.queue_us, queued_s)
        return finished

    async def _info(self, data: bytes, _: TimeLeft) -> bytes:
        decode(retrieval_pb2.InfoRequest, data)
        reply = replies.info_reply(
            self._live.current(),
            self._settings,
            failed_version=self._live.failed_version,
            failure=self._live.failure,
            hidden_failure=self._live.hidden_failure,
            server_version=__version__,
            is_browned_out=self._brown_out.is_on and self._settings.brown_out_recall_floor is not None,
        )
        return reply.SerializeToString()
