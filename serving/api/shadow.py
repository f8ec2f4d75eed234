"""The comparison of a shadow with the live version, beside the calls.

A shadow is asked after the answer, one call at a time, and only while no other call waits. So it costs
callers no more than one batch of one request.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from re4.common.errors import Re4Error
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.batch_handler import RequestResult, batch_group
from re4.serving.api.validation import CheckedRequest, check_retrieve
from re4.serving.batching.batcher import Batcher
from re4.serving.observability.call_context import CURRENT_CALL
from re4.serving.observability.metrics import CallMetrics
from re4.serving.protocol.decoding import decode
from re4.serving.settings import ServerSettings
from re4.serving.versions.canary import VersionRouter
from re4.serving.versions.snapshot import Snapshot

_MAX_WAIT_MS: Final = 1.0
"""A shadow is asked only while a new call would wait less."""

_log = logging.getLogger(__name__)


class Shadow:
    """Asks the shadow the questions of answered calls. Belongs to one event loop."""

    def __init__(
        self,
        router: VersionRouter,
        settings: ServerSettings,
        metrics: CallMetrics,
        batcher: Batcher[CheckedRequest, RequestResult],
        on_answer: Callable[[RequestResult, Snapshot], None],
    ) -> None:
        """Ask nothing yet.

        Args:
            router: Knows the shadow and its share of the calls.
            settings: Of the server.
            metrics: Counts the comparisons.
            batcher: Answers.
            on_answer: Called with each answer of the shadow.
        """
        self._router = router
        self._settings = settings
        self._metrics = metrics
        self._batcher = batcher
        self._on_answer = on_answer
        self._asking: asyncio.Task[None] | None = None

    def offer(self, data: bytes, request: CheckedRequest, answer: RequestResult) -> None:
        """Ask the shadow the same, where the call is of its share and the budget allows. Fails no call.

        Args:
            data: The message of the call.
            request: As it was answered, with the stored history of its user.
            answer: The live version's.
        """
        if self._router.canary is None or not request.num_candidates or answer.query_result is None:
            return
        try:
            self._ask_soon(data, request, answer)
        except Exception:
            _log.exception("the shadow is not asked")
            self._metrics.shadow("failed")

    def _ask_soon(self, data: bytes, request: CheckedRequest, answer: RequestResult) -> None:
        shadow = self._router.compares_with(request.user_id or CURRENT_CALL.get().request_id)
        if shadow is None:
            return
        if self._asking is not None or self._batcher.wait_ms(batch_group(request)) > _MAX_WAIT_MS:
            self._metrics.shadow("dropped")
            return
        self._asking = asyncio.create_task(self._ask(data, request, answer, shadow))

    async def _ask(
        self, data: bytes, request: CheckedRequest, answer: RequestResult, shadow: Snapshot
    ) -> None:
        try:
            checked = check_retrieve(decode(retrieval_pb2.RetrieveRequest, data), shadow, self._settings)
            # The stored history and the excluded items of it, as the live version had them.
            asked = checked._replace(
                history_ids=request.history_ids, excluded_ids=request.excluded_ids, user_id=""
            )
            (queued,) = self._batcher.enqueue([asked], time_left_s=None, is_admitted=True)
            found = await queued
        except Re4Error as error:
            _log.debug("the shadow does not answer: %s", error)
            self._metrics.shadow("failed")
        except Exception:
            _log.exception("the shadow does not answer")
            self._metrics.shadow("failed")
        else:
            self._metrics.shadow("compared")
            self._compare(request, answer, asked, found)
            self._on_answer(found, asked.snapshot)
        finally:
            self._asking = None

    def _compare(
        self, request: CheckedRequest, answer: RequestResult, asked: CheckedRequest, found: RequestResult
    ) -> None:
        lists = []
        for role, checked, result in (("live", request, answer), ("shadow", asked, found)):
            rows_M = np.empty(0, np.int64)
            if result.query_result is not None:
                times = result.query_result.times
                stages_us = times.gather_us, times.encode_us, times.search_us, times.merge_us
                self._metrics.shadow_seconds(role, sum(stages_us) / 1e6)
                rows_M = result.query_result.merged.rows_M
            lists.append(checked.snapshot.item_ids.ids(rows_M))
        live, shadow = lists
        self._metrics.shadow_overlap(len({*live} & {*shadow}) / max(1, len(live)))
