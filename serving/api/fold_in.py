"""Folding in: items that no training has seen get better vectors by recorded events.

A user who touches such an item has a history, hence interests. The interest that fits the item best becomes
evidence: it is added up for each item, durably and without the user's id, and every server moves the item's
vector by it (`bundle/fold_in.py`). It is done after the reply to the caller, in rounds of limited work.

Legend: K interests, D embedding.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.live_items.records import Change, Evidence
from re4.common.errors import BundleReadOnlyError, Re4Error
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.batch_handler import RequestResult
from re4.serving.api.validation import CheckedRequest
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

_ROUND_S: Final = 1.0
_MAX_ROUND_EVENTS: Final = 256
"""Events of a round: encoding their users takes some 50 ms of CPU time."""
_MAX_WAITING_EVENTS: Final = 8_192
_MAX_KNOWN_PAIRS: Final = 65_536
"""Recent pairs of user and item: a user counts once for an item."""

_log = logging.getLogger(__name__)


class FoldIn:
    """Makes evidence of recorded events. Belongs to one event loop."""

    def __init__(
        self,
        live: LiveVersion,
        *,
        histories: Callable[[Sequence[str]], Awaitable[list[list[Any]]]],
        encode: Callable[[Sequence[CheckedRequest]], Sequence["asyncio.Future[RequestResult]"]],
        write: Callable[[Snapshot, Sequence[Change]], Awaitable[object]],
    ) -> None:
        """Start without an event.

        Args:
            live: The version that answers.
            histories: Returns the newest items of each user, oldest first.
            encode: Queues requests for interests.
            write: Makes changes of live items durable.
        """
        self._live = live
        self._histories = histories
        self._encode = encode
        self._write = write
        self._waiting: deque[tuple[str, Any]] = deque(maxlen=_MAX_WAITING_EVENTS)
        self._known: OrderedDict[int, None] = OrderedDict()
        self._num_events = 0
        """Recorded events, of any item, since the last evidence."""
        self._running: asyncio.Task[None] | None = None
        self._is_refused = False
        """Whether the bundle directory is a mirror, which has the evidence of others only."""

    def offer(self, request: retrieval_pb2.RecordEventsRequest) -> None:
        """Take the events of a call that are of items without training; of too many, the oldest are lost."""
        snapshot = self._live.snapshot
        if snapshot is None or self._is_refused:
            return
        ids: list[Any] = list(request.items.strings) or list(request.items.ints)
        if not ids or type(ids[0]) is not (str if snapshot.item_ids.kind == "string" else int):
            return
        self._num_events += len(ids)
        for place in np.flatnonzero(snapshot.is_untrained(snapshot.item_ids.rows(ids))).tolist():
            pair = hash((request.user_ids[place], ids[place]))
            if pair not in self._known:
                self._known[pair] = None
                if len(self._known) > _MAX_KNOWN_PAIRS:
                    self._known.popitem(last=False)
                self._waiting.append((request.user_ids[place], ids[place]))
        if self._waiting and self._running is None:
            self._running = asyncio.create_task(self._run())

    def close(self) -> None:
        """Drop the events that wait."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_ROUND_S)
                await self.fold_in()
        finally:
            self._running = None

    async def fold_in(self) -> None:
        """Make evidence of the oldest events that wait; an error drops them."""
        events = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_ROUND_EVENTS))]
        try:
            snapshot = self._live.current()
            changes = await self._evidence(events, snapshot)
            if changes:
                num_events = self._num_events
                await self._write(snapshot, [replace(changes[0], num_events=num_events), *changes[1:]])
                self._num_events -= num_events
        except BundleReadOnlyError as error:
            self._is_refused = True
            self._waiting.clear()
            _log.warning("events are recorded, but not folded in: %s", error)
        except Re4Error as error:
            _log.warning("%d events are not folded in: %s", len(events), error)
        except Exception:
            _log.exception("%d events are not folded in", len(events))

    async def _evidence(self, events: Sequence[tuple[str, Any]], snapshot: Snapshot) -> list[Evidence]:
        users = list(dict.fromkeys(user for user, _ in events))
        history_of = dict(zip(users, await self._histories(users), strict=True))
        kind = str if snapshot.item_ids.kind == "string" else int
        items: list[Any] = []
        requests = []
        for user, item in events:
            history: list[Any] = [each for each in history_of[user] if type(each) is kind and each != item]
            if history:
                items.append(item)
                requests.append(
                    CheckedRequest(
                        snapshot=snapshot, history_ids=history, num_candidates=0, return_interests=True
                    )
                )
        if not requests:
            return []
        results = await asyncio.gather(*self._encode(requests), return_exceptions=True)
        rows = snapshot.item_ids.rows(items)
        vectors_RD = await asyncio.to_thread(snapshot.vectors_of, rows)
        sums: dict[Any, tuple[float, NDArray[np.float64]]] = {}
        for item, row, vector_D, result in zip(items, rows.tolist(), vectors_RD, results, strict=True):
            if not isinstance(result, RequestResult) or result.query_result is None or row < 0:
                continue
            interests_KD = result.query_result.interests_KD
            best_D = interests_KD[int((interests_KD @ vector_D).argmax())].astype(np.float64)
            weight, sum_D = sums.get(item, (0.0, np.zeros_like(best_D)))
            sums[item] = weight + 1.0, sum_D + best_D
        return [
            Evidence(item, snapshot.manifest.items.space, weight, sum_D.astype(np.float32))
            for item, (weight, sum_D) in sums.items()
        ]
