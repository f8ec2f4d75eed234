"""The calls on histories by user id, and the stored history of requests for candidates."""

from collections.abc import Callable, Sequence
from time import time
from typing import TypeAlias

from re4.common.errors import HistoryStoreError, NoUsableHistoryError, Re4Error
from re4.protos.v1 import retrieval_pb2
from re4.serving.api.validation import CheckedRequest, check_record_events, check_user_id
from re4.serving.auth.tokens import Scope
from re4.serving.histories.lookups import HistoryLookups
from re4.serving.histories.popularity import RecentPopularity
from re4.serving.histories.recorder import Recorder
from re4.serving.histories.settings import HistoryFallback, open_store
from re4.serving.histories.store import Item
from re4.serving.observability.call_context import Call
from re4.serving.observability.metrics import CallMetrics
from re4.serving.protocol.decoding import decode
from re4.serving.settings import ServerSettings, bundles_of
from re4.serving.versions.snapshot import Snapshot

TimeLeft: TypeAlias = Callable[[], float | None]

_NO_HISTORIES = (
    "this server keeps no histories by user id (--histories none); send the history of each request, or "
    "start the server with a store"
)


class HistoryCalls:
    """Answers the calls on histories. Belongs to one event loop."""

    def __init__(self, settings: ServerSettings, metrics: CallMetrics) -> None:
        """Open the store that the settings name, if any.

        Raises:
            UsageError: it needs a package that is not installed.
        """
        self._settings = settings
        self.on_recorded: Callable[[retrieval_pb2.RecordEventsRequest], None] = lambda _: None
        """Called with each request of which events were new, after they are durable."""
        self._recorder: Recorder | None = None
        self._lookups: HistoryLookups | None = None
        self.popularity: RecentPopularity | None = None
        """Popular items of the last hours; None where the version's counts are followed."""
        self.kind = ""
        """Of the store, for `Info`; empty for none."""
        history = settings.history
        bundles = None if settings.bundles is None else bundles_of(settings)
        reading = open_store(history, bundles)
        if reading is None:
            return
        # The Redis client has one connection for look-ups and one for recording; LMDB opens a folder once.
        writing = reading if reading.is_local else open_store(history, bundles)
        assert writing is not None
        self.kind = "lmdb" if reading.is_local else "redis"
        if settings.popular_half_life_h is not None:
            self.popularity = RecentPopularity(writing, settings.popular_half_life_h, metrics.popular_items)
            self.popularity.start()
        self._recorder = Recorder(writing, metrics, settings.max_queue_ms, self.popularity)
        self._lookups = HistoryLookups(reading, metrics, history.history_timeout_ms)

    @property
    def failure(self) -> str:
        """Why the store cannot be used now; empty where it can, or where there is none."""
        if self._recorder is None or self._lookups is None:
            return ""
        return self._lookups.breaker.failure or self._recorder.breaker.failure

    async def record_events(self, data: bytes, time_left: TimeLeft, snapshot: Snapshot, call: Call) -> bytes:
        """Answer RecordEvents."""
        if self._recorder is None:
            raise NoUsableHistoryError(_NO_HISTORIES)
        self._recorder.check(1, time_left())
        message = decode(retrieval_pb2.RecordEventsRequest, data)
        limits = self._settings.limits
        check_record_events(message, snapshot, limits.max_num_events, int(time() * 1e3))
        num_events = len(message.user_ids)
        self._recorder.check(num_events, time_left())
        call.charge(num_events)
        num_new = await self._recorder.record(message, data, time_left())
        if num_new:
            self.on_recorded(message)
        return retrieval_pb2.RecordEventsReply(
            num_recorded=num_new, num_duplicates=num_events - num_new
        ).SerializeToString()

    async def get_history(self, data: bytes, time_left: TimeLeft) -> bytes:
        """Answer GetHistory."""
        if self._lookups is None:
            raise NoUsableHistoryError(_NO_HISTORIES)
        message = decode(retrieval_pb2.GetHistoryRequest, data)
        events = await self._lookups.newest_events(check_user_id(message.user_id), time_left())
        if message.num_events:
            events = events[-message.num_events :]
        items = [event.item for event in events]
        if all(isinstance(item, int) for item in items):
            ids = retrieval_pb2.ItemIds(ints=[int(item) for item in items])
        else:
            ids = retrieval_pb2.ItemIds(strings=[str(item) for item in items])
        return retrieval_pb2.GetHistoryReply(
            items=ids, times_ms=[event.time_ms for event in events]
        ).SerializeToString()

    async def forget_user(self, data: bytes, time_left: TimeLeft) -> bytes:
        """Answer ForgetUser."""
        if self._recorder is None:
            raise NoUsableHistoryError(_NO_HISTORIES)
        message = decode(retrieval_pb2.ForgetUserRequest, data)
        user_id = check_user_id(message.user_id)
        self._recorder.check(1, time_left())
        await self._recorder.forget(user_id, time_left())
        return retrieval_pb2.ForgetUserReply().SerializeToString()

    async def with_history(self, request: CheckedRequest, time_left: TimeLeft, call: Call) -> CheckedRequest:
        """Return a request with the stored events of its user before the ids of the request.

        Raises:
            NoUsableHistoryError: the server keeps no histories.
            PermissionDeniedError: the reply would show stored items, and the token may not read them.
            HistoryStoreError, TooLateError: the store cannot be used, or not in time.
        """
        (found,) = await self.with_histories([request], time_left, call)
        if isinstance(found, Re4Error):
            raise found
        return found

    async def with_histories(
        self, requests: Sequence[CheckedRequest], time_left: TimeLeft, call: Call
    ) -> list[CheckedRequest | Re4Error]:
        """Return the requests of one call, or their errors, by one look-up; as `with_history`."""
        checked: list[CheckedRequest | Re4Error] = []
        for request in requests:
            try:
                self._check_allowed(request, call)
                checked.append(request)
            except Re4Error as error:
                checked.append(error)
        named = [each for each in checked if isinstance(each, CheckedRequest) and each.user_id]
        if not named or self._lookups is None:
            return checked
        try:
            stored = await self._lookups.newest_items([each.user_id for each in named], time_left())
        except Re4Error as error:
            is_answered = (
                isinstance(error, HistoryStoreError)
                and self._settings.history.history_fallback is HistoryFallback.REQUEST
            )
            return [
                each
                if isinstance(each, Re4Error) or not each.user_id
                else each._replace(is_history_missing=True)
                if is_answered
                else error
                for each in checked
            ]
        items_of = iter(stored)
        return [
            with_stored_items(each, next(items_of))
            if isinstance(each, CheckedRequest) and each.user_id
            else each
            for each in checked
        ]

    async def newest_items(self, user_ids: Sequence[str]) -> list[list[Item]]:
        """Return the items of the newest events of each user, oldest first.

        Raises:
            HistoryStoreError: the store cannot be used.
        """
        if self._lookups is None:
            return [[] for _ in user_ids]
        return await self._lookups.newest_items(user_ids, None)

    def close(self) -> None:
        """End the threads after the calls that wait, and close the store."""
        if self._lookups is not None:
            self._lookups.close()
        if self.popularity is not None:
            self.popularity.close()
        if self._recorder is not None:
            self._recorder.close()

    def _check_allowed(self, request: CheckedRequest, call: Call) -> None:
        if not request.user_id:
            return
        if self._lookups is None:
            raise NoUsableHistoryError(_NO_HISTORIES)
        if call.caller is not None and (request.return_interests or request.num_reasons):
            what = "return_interests" if request.return_interests else "num_reasons"
            call.caller.require(Scope.READ_HISTORIES, f"{what} with user_id")


def with_stored_items(request: CheckedRequest, stored: list[Item]) -> CheckedRequest:
    """Return the request with stored items before its own; items of another kind of id are left out."""
    kind = str if request.snapshot.item_ids.kind == "string" else int
    if set(map(type, stored)) - {kind}:
        stored = [item for item in stored if type(item) is kind]
    ids: list[Item] = [*stored, *request.history_ids]
    return request._replace(history_ids=ids)  # type: ignore[arg-type]  # all of the catalogue's kind
