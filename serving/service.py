"""The calls of `re4.v1.Retrieval`: each answered whole from one version.

Handlers take and give bytes, so that a message that cannot be parsed gets the status it deserves. Knows
nothing about processes, ports or how versions come and go.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc

from protos.v1 import retrieval_pb2
from re4 import __version__
from re4.errors import Re4Error
from serving import replies
from serving.batcher import Batcher
from serving.decoding import decode
from serving.environment import cap_this_thread
from serving.live import Live
from serving.pipeline import Answer, Query
from serving.requests import check_encode, check_retrieve
from serving.settings import ServerSettings
from serving.snapshot import Snapshot
from serving.status import status_of

SERVICE_NAME: Final = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _Job:
    snapshot: Snapshot
    query: Query


def _run(jobs: Sequence[_Job]) -> Sequence[Answer | Exception]:
    """Answer a batch of one version, in the compute lane."""
    return jobs[0].snapshot.pipeline.run([job.query for job in jobs])


class RetrievalService:
    """Answers calls from what is live. Belongs to one event loop."""

    def __init__(self, live: Live, settings: ServerSettings) -> None:
        self._live = live
        self._settings = settings
        self._batcher: Batcher[_Job, Answer] = Batcher(
            _run,
            max_batch_size=settings.max_batch_size,
            may_share=lambda first, other: first.snapshot is other.snapshot,
            on_lane_start=cap_this_thread,
        )
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server dispatches calls by."""
        methods = {"Retrieve": self._retrieve, "Encode": self._encode, "Info": self._info}
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                name: grpc.unary_unary_rpc_method_handler(self._guarded(name, method))
                for name, method in methods.items()
            },
        )

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

    def _guarded(self, name: str, method: Callable[[bytes], Awaitable[bytes]]) -> Handler:
        """A method with errors turned into statuses, counted while it runs."""

        async def guarded(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            self._num_in_flight += 1
            self._idle.clear()
            try:
                return await method(data)
            except Re4Error as error:
                code, details = status_of(type(error)), str(error)
                if code is grpc.StatusCode.INTERNAL:
                    _log.error("%s: %s", name, error)
            except Exception:
                _log.exception("%s failed", name)
                code, details = grpc.StatusCode.INTERNAL, f"{name} failed; the server's log says why"
            finally:
                self._num_in_flight -= 1
                if not self._num_in_flight:
                    self._idle.set()
            return await context.abort(code, details)

        return guarded

    async def _retrieve(self, data: bytes) -> bytes:
        snapshot = self._live.current()
        request = decode(retrieval_pb2.RetrieveRequest, data)
        checked = check_retrieve(request, snapshot, self._settings)
        if checked.is_popularity_fallback:
            return replies.popular_reply(checked, snapshot).SerializeToString()
        answer, queue_us = await self._batcher.submit(_Job(snapshot, checked.query))
        return replies.retrieve_reply(answer, queue_us, checked, snapshot).SerializeToString()

    async def _encode(self, data: bytes) -> bytes:
        snapshot = self._live.current()
        checked = check_encode(decode(retrieval_pb2.EncodeRequest, data), snapshot, self._settings)
        answer, _ = await self._batcher.submit(_Job(snapshot, checked.query))
        return replies.encode_reply(answer, checked, snapshot).SerializeToString()

    async def _info(self, data: bytes) -> bytes:
        decode(retrieval_pb2.InfoRequest, data)
        reply = replies.info_reply(
            self._live.current(),
            self._settings,
            failed_version=self._live.failed_version,
            failure=self._live.failure,
            server_version=__version__,
        )
        return reply.SerializeToString()
