"""The clients of servers, blocking and for an event loop. They load neither FAISS nor ONNX Runtime."""

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from re4.serving.client.attempts import CallPlan, HedgeTimer, await_with_attempts, call_with_attempts
from re4.serving.client.catalogue_values import (
    CatalogueItem,
    find_items_request,
    get_items_request,
    list_values_request,
    to_found,
    to_items,
    to_values,
)
from re4.serving.client.connection import Connection, server_error
from re4.serving.client.item_values import (
    EditedItems,
    LiveItem,
    remove_request,
    to_edited,
    upsert_request,
)
from re4.serving.client.several_servers import is_several
from re4.serving.client.values import (
    AttributeFilter,
    Candidates,
    Interests,
    ItemIdList,
    RecordedEvent,
    RetrieveOptions,
    encode_request,
    forget_user_request,
    get_history_request,
    record_events_request,
    retrieve_request,
    retrieve_requests,
    to_batch,
    to_candidates,
    to_facts,
    to_history,
    to_interests,
)

_ReplyT = TypeVar("_ReplyT")


class RetrievalClient:
    """Calls to one server. Use it in a `with` block; threads may share it."""

    def __init__(
        self, address: str, *, timeout_s: float = 10.0, connection: Connection | None = None
    ) -> None:
        """Prepare a connection, which is made with the first call.

        Args:
            address: HOST:PORT of a server; or several servers: IP:PORT,IP:PORT or dns:///NAME:PORT, where
                calls are balanced, and sent again to another server.
            timeout_s: Deadline of each call, in seconds.
            connection: TLS and token, such as `Connection.read(ca=…, token_file=…)`; None for neither.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._connection = connection or Connection()
        self._channel = self._connection.channel(address)
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
        self._timer = HedgeTimer() if is_several(address) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def retrieve(
        self,
        history: Sequence[str] | Sequence[int] = (),
        num_candidates: int = 50,
        *,
        user_id: str = "",
        exclude: Sequence[str] | Sequence[int] = (),
        **options: Unpack[RetrieveOptions],
    ) -> Candidates:
        """Return candidates for one user.

        Args:
            history: Item ids of the user's events, oldest first.
            num_candidates: Number of candidates; fewer come only where the catalogue has no more.
            user_id: The user whose events, recorded before, come before those of `history`; empty for none.
            exclude: Item ids that must not be among the candidates.
            options: Filters, merge policy and more: see `RetrieveOptions`.

        Raises:
            RequestError: ids that are neither all strings nor all integers, or an unknown merge policy.
            ServerError: the server answered with an error, or none answered.
        """
        request = retrieve_request(history, num_candidates, exclude, options, user_id)
        return to_candidates(self._call(self._stub.Retrieve, request))

    def retrieve_batch(
        self,
        histories: Sequence[Sequence[str] | Sequence[int]],
        num_candidates: int = 50,
        *,
        user_ids: Sequence[str] | None = None,
        exclude: Sequence[Sequence[str] | Sequence[int]] | None = None,
        **options: Unpack[RetrieveOptions],
    ) -> list[Candidates | ServerError]:
        """Return candidates for many users, in one call.

        Args:
            histories: One history for each user; at most `max_num_users` of `info`.
            num_candidates: Number of candidates for each user.
            user_ids: One user id for each history, as in `retrieve`; None for none.
            exclude: One list of excluded item ids for each user; None for no exclusions.
            options: See `RetrieveOptions`; the same for all users.

        Returns:
            One entry for each user: candidates (with empty `stage_times`), or the error of that user.

        Raises:
            RequestError: as in `retrieve`, or `exclude` or `user_ids` has another length than `histories`.
            ServerError: the server rejected the whole call, or none answered.
        """
        users = retrieve_requests(histories, num_candidates, exclude, options, user_ids)
        reply = self._call(self._stub.BatchRetrieve, retrieval_pb2.BatchRetrieveRequest(users=users))
        return to_batch(reply)

    def encode(self, history: Sequence[str] | Sequence[int]) -> Interests:
        """Return the interests of one user, without a search.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        reply = self._call(self._stub.Encode, encode_request(history))
        return to_interests(reply.interests, reply.version, reply.num_unknown_history_ids)

    def record_events(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str] | Sequence[int],
        *,
        times_ms: Sequence[int] | None = None,
        event_ids: Sequence[str] | None = None,
    ) -> int:
        """Record events of users, durably, and return how many of them were new.

        Args:
            user_ids: The user of each event.
            item_ids: The item of each event.
            times_ms: The time of each event, in milliseconds since 1970; None for the time of receipt.
            event_ids: An id of each event, so that a call can be repeated; None for none. Ids need times.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        request = record_events_request(user_ids, item_ids, times_ms, event_ids)
        return int(self._call(self._stub.RecordEvents, request, **_recording(event_ids)).num_recorded)

    def get_history(self, user_id: str, num_events: int = 0) -> list[RecordedEvent]:
        """Return the stored events of a user, oldest first.

        Args:
            user_id: The user.
            num_events: Number of the newest events; 0 for all that are stored.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        return to_history(self._call(self._stub.GetHistory, get_history_request(user_id, num_events)))

    def forget_user(self, user_id: str) -> None:
        """Remove all that is stored of a user, durably; training leaves the earlier events out.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        self._call(self._stub.ForgetUser, forget_user_request(user_id), is_hedged=False)

    def upsert_items(self, items: Sequence[LiveItem]) -> EditedItems:
        """Add items, or replace all facts about items that are there; durable when it returns.

        Args:
            items: At most `max_num_edited_items` of `info`.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        return to_edited(self._call(self._stub.UpsertItems, upsert_request(items), is_hedged=False))

    def remove_items(self, item_ids: Sequence[str] | Sequence[int]) -> EditedItems:
        """Leave items out of all answers; durable when it returns.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        return to_edited(self._call(self._stub.RemoveItems, remove_request(item_ids), is_hedged=False))

    def get_items(
        self, item_ids: Sequence[str] | Sequence[int], *, return_vectors: bool = False
    ) -> list[CatalogueItem]:
        """Return titles and attributes of items, one entry for each id, for people who look at answers.

        Args:
            item_ids: At most `max_num_candidates` of `info`; unknown ids are allowed.
            return_vectors: Also return the items' vectors.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        request = get_items_request(item_ids, return_vectors=return_vectors)
        return to_items(item_ids, self._call(self._stub.GetItems, request))

    def find_items(
        self, text: str = "", *, filters: Sequence[AttributeFilter] = (), num_items: int = 20
    ) -> ItemIdList:
        """Return the ids of items by the words of their titles, by id, or by attributes.

        Args:
            text: Words, all of which the title contains, in any case; or an item id. Empty for all items.
            filters: Only items that pass all of these conditions.
            num_items: Return at most this number; popular items first.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        return to_found(self._call(self._stub.FindItems, find_items_request(text, filters, num_items)))

    def list_values(self, attribute: str, *, like: str = "", num_values: int = 20) -> dict[str, int]:
        """Return values of an attribute, with the number of items that have each.

        Args:
            attribute: Name of the attribute, as `info` lists it.
            like: Return the values that are most like this text; empty for those of most items.
            num_values: Return at most this number.

        Raises:
            RequestError: a value that no request can carry.
            ServerError: the server answered with an error, or none answered.
        """
        return to_values(self._call(self._stub.ListValues, list_values_request(attribute, like, num_values)))

    def info(self) -> dict[str, Any]:
        """Return the server's live version, model, index, limits and settings: the fields of `InfoReply`.

        Raises:
            ServerError: the server answered with an error, or none answered.
        """
        return to_facts(self._call(self._stub.Info, retrieval_pb2.InfoRequest()))

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, _ReplyT]",
        request: object,
        *,
        is_repeatable: bool = True,
        is_hedged: bool = True,
    ) -> _ReplyT:
        """Return the reply; with several servers, of the first one that answers."""
        metadata = self._connection.metadata
        try:
            if self._timer is None:
                return method(request, timeout=self._timeout_s, metadata=metadata)
            plan = CallPlan(self._timer, self._timeout_s, is_repeatable=is_repeatable, is_hedged=is_hedged)
            reply: _ReplyT = call_with_attempts(
                lambda timeout_s: method.future(request, timeout=timeout_s, metadata=metadata), plan
            )
            return reply
        except grpc.RpcError as error:
            raise server_error(error, self.address, self._timeout_s) from error


class AsyncRetrievalClient:
    """Calls to one server from one event loop. Use it in an `async with` block."""

    def __init__(
        self, address: str, *, timeout_s: float = 10.0, connection: Connection | None = None
    ) -> None:
        """Prepare a connection, which is made with the first call.

        Args:
            address: HOST:PORT of a server; or several servers: IP:PORT,IP:PORT or dns:///NAME:PORT, where
                calls are balanced, and sent again to another server.
            timeout_s: Deadline of each call, in seconds.
            connection: TLS and token, such as `Connection.read(ca=…, token_file=…)`; None for neither.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._connection = connection or Connection()
        self._channel: grpc.aio.Channel | None = None
        self._timer = HedgeTimer() if is_several(address) else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def retrieve(
        self,
        history: Sequence[str] | Sequence[int] = (),
        num_candidates: int = 50,
        *,
        user_id: str = "",
        exclude: Sequence[str] | Sequence[int] = (),
        **options: Unpack[RetrieveOptions],
    ) -> Candidates:
        """Return candidates for one user, as `RetrievalClient.retrieve` does."""
        request = retrieve_request(history, num_candidates, exclude, options, user_id)
        return to_candidates(await self._call(self._stub.Retrieve, request))

    async def retrieve_batch(
        self,
        histories: Sequence[Sequence[str] | Sequence[int]],
        num_candidates: int = 50,
        *,
        user_ids: Sequence[str] | None = None,
        exclude: Sequence[Sequence[str] | Sequence[int]] | None = None,
        **options: Unpack[RetrieveOptions],
    ) -> list[Candidates | ServerError]:
        """Return candidates for many users in one call, as `RetrievalClient.retrieve_batch` does."""
        users = retrieve_requests(histories, num_candidates, exclude, options, user_ids)
        request = retrieval_pb2.BatchRetrieveRequest(users=users)
        return to_batch(await self._call(self._stub.BatchRetrieve, request))

    async def encode(self, history: Sequence[str] | Sequence[int]) -> Interests:
        """Return the interests of one user without a search, as `RetrievalClient.encode` does."""
        reply = await self._call(self._stub.Encode, encode_request(history))
        return to_interests(reply.interests, reply.version, reply.num_unknown_history_ids)

    async def record_events(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str] | Sequence[int],
        *,
        times_ms: Sequence[int] | None = None,
        event_ids: Sequence[str] | None = None,
    ) -> int:
        """Record events of users, durably, as `RetrievalClient.record_events` does."""
        request = record_events_request(user_ids, item_ids, times_ms, event_ids)
        return int((await self._call(self._stub.RecordEvents, request, **_recording(event_ids))).num_recorded)

    async def get_history(self, user_id: str, num_events: int = 0) -> list[RecordedEvent]:
        """Return the stored events of a user, as `RetrievalClient.get_history` does."""
        return to_history(await self._call(self._stub.GetHistory, get_history_request(user_id, num_events)))

    async def forget_user(self, user_id: str) -> None:
        """Remove all that is stored of a user, as `RetrievalClient.forget_user` does."""
        await self._call(self._stub.ForgetUser, forget_user_request(user_id), is_hedged=False)

    async def upsert_items(self, items: Sequence[LiveItem]) -> EditedItems:
        """Add items, or replace all facts about them, as `RetrievalClient.upsert_items` does."""
        return to_edited(await self._call(self._stub.UpsertItems, upsert_request(items), is_hedged=False))

    async def remove_items(self, item_ids: Sequence[str] | Sequence[int]) -> EditedItems:
        """Leave items out of all answers, as `RetrievalClient.remove_items` does."""
        return to_edited(await self._call(self._stub.RemoveItems, remove_request(item_ids), is_hedged=False))

    async def get_items(
        self, item_ids: Sequence[str] | Sequence[int], *, return_vectors: bool = False
    ) -> list[CatalogueItem]:
        """Return titles and attributes of items, as `RetrievalClient.get_items` does."""
        request = get_items_request(item_ids, return_vectors=return_vectors)
        return to_items(item_ids, await self._call(self._stub.GetItems, request))

    async def find_items(
        self, text: str = "", *, filters: Sequence[AttributeFilter] = (), num_items: int = 20
    ) -> ItemIdList:
        """Return the ids of items by title, id or attributes, as `RetrievalClient.find_items` does."""
        request = find_items_request(text, filters, num_items)
        return to_found(await self._call(self._stub.FindItems, request))

    async def list_values(self, attribute: str, *, like: str = "", num_values: int = 20) -> dict[str, int]:
        """Return values of an attribute and their numbers of items, as `RetrievalClient.list_values` does."""
        request = list_values_request(attribute, like, num_values)
        return to_values(await self._call(self._stub.ListValues, request))

    async def info(self) -> dict[str, Any]:
        """Return the fields of the server's `InfoReply` by name, as `RetrievalClient.info` does."""
        return to_facts(await self._call(self._stub.Info, retrieval_pb2.InfoRequest()))

    @property
    def _stub(self) -> "retrieval_pb2_grpc.RetrievalAsyncStub":
        if self._channel is None:  # made with the first call, because a channel belongs to the running loop
            self._channel = self._connection.aio_channel(self.address)
        return retrieval_pb2_grpc.RetrievalStub(self._channel)

    async def _call(
        self,
        method: Callable[..., Awaitable[_ReplyT]],
        request: object,
        *,
        is_repeatable: bool = True,
        is_hedged: bool = True,
    ) -> _ReplyT:
        metadata = self._connection.metadata
        try:
            if self._timer is None:
                return await method(request, timeout=self._timeout_s, metadata=metadata)
            plan = CallPlan(self._timer, self._timeout_s, is_repeatable=is_repeatable, is_hedged=is_hedged)
            return await await_with_attempts(
                lambda timeout_s: method(request, timeout=timeout_s, metadata=metadata), plan
            )
        except grpc.RpcError as error:
            raise server_error(error, self.address, self._timeout_s) from error


def _recording(event_ids: Sequence[str] | None) -> dict[str, bool]:
    """Return how a call of RecordEvents may be repeated: events without ids would count twice."""
    return {"is_repeatable": event_ids is not None, "is_hedged": False}
