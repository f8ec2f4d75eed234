"""The thin client: candidates from a server, in plain Python values. Loads neither FAISS nor ONNX Runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from re4.errors import RequestError, ServerError

ItemIdList: TypeAlias = list[str] | list[int]

_RequestT = TypeVar("_RequestT")
_ReplyT = TypeVar("_ReplyT")


@dataclass(frozen=True, kw_only=True, eq=False)
class Interests:
    """K interest vectors and what each attends to."""

    vectors_KD: NDArray[np.float32]
    attention_KL: NDArray[np.float32]
    """Each interest's attention over `attended_item_ids`; every row sums to 1."""
    attended_item_ids: ItemIdList
    """The history items that counted, oldest first."""
    version: str
    """The bundle version that answered."""
    num_unknown_history_ids: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Candidates for one user, best first, in parallel arrays."""

    item_ids: ItemIdList
    scores_M: NDArray[np.float32]
    interest_numbers_M: NDArray[np.int64]
    """The interest, 0 to K-1, that gave the score."""
    version: str
    """The bundle version that gave the whole answer."""
    num_unknown_history_ids: int
    is_popularity_fallback: bool
    """These are the most popular items, because nothing in the history was usable."""
    interests: Interests | None
    """Where they were asked for."""
    stage_times: dict[str, int]
    """Where the time went on the server, in microseconds, and the number of calls that shared the batch."""


class RetrievalClient:
    """Calls to one server. Use it in a `with` block; safe to share between threads."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Prepare a connection; it is made with the first call.

        Args:
            address: HOST:PORT of a server.
            timeout_s: How long one call may take, in seconds.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                # A connection of its own: clients of one process would share one, and so one server process.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)

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
        history: Sequence[str] | Sequence[int],
        num_candidates: int = 50,
        *,
        exclude: Sequence[str] | Sequence[int] = (),
        exclude_history: bool = False,
        return_interests: bool = False,
    ) -> Candidates:
        """Candidates for one user.

        Args:
            history: The user's items, oldest first, as the catalogue names them.
            num_candidates: How many.
            exclude: Items that must not be among them.
            exclude_history: Leave the history's items out as well.
            return_interests: Also return the interests and their attention.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        request = _request(
            lambda: retrieval_pb2.RetrieveRequest(
                history=_item_ids(history, "history"),
                num_candidates=num_candidates,
                exclude=_item_ids(exclude, "exclude"),
                exclude_history=exclude_history,
                return_interests=return_interests,
            )
        )
        reply = self._call(self._stub.Retrieve, request)
        has_interests = reply.HasField("interests")
        return Candidates(
            item_ids=_id_list(reply.items),
            scores_M=np.array(reply.scores, np.float32),
            interest_numbers_M=np.array(reply.interest_numbers, np.int64),
            version=reply.version,
            num_unknown_history_ids=reply.num_unknown_history_ids,
            is_popularity_fallback=reply.is_popularity_fallback,
            interests=_interests(reply.interests, reply) if has_interests else None,
            stage_times={
                field.name: getattr(reply.stage_times, field.name)
                for field in reply.stage_times.DESCRIPTOR.fields
            },
        )

    def encode(self, history: Sequence[str] | Sequence[int]) -> Interests:
        """One user's interests, without a search.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        request = _request(lambda: retrieval_pb2.EncodeRequest(history=_item_ids(history, "history")))
        reply = self._call(self._stub.Encode, request)
        return _interests(reply.interests, reply)

    def info(self) -> dict[str, Any]:
        """The live version, model, index and limits, by the names of `InfoReply`'s fields.

        Raises:
            ServerError: the server answered with an error, or none answered.
        """
        reply = self._call(self._stub.Info, retrieval_pb2.InfoRequest())
        return {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}

    def _call(self, method: Callable[..., _ReplyT], request: object) -> _ReplyT:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            # Every error that a call raises is also a Call, which carries status and details.
            code, details = error.code(), error.details()
            message = f"{code.name} from {self.address}: {details}"
            if code is grpc.StatusCode.UNAVAILABLE:
                message += (
                    ". Is a server running there? "
                    f"Start one: re4 serve --bundles DIR --address {self.address}"
                )
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"{code.name}: {self.address} did not answer within {self._timeout_s:g} seconds"
            raise ServerError(message) from error


def _request(build: Callable[[], _RequestT]) -> _RequestT:
    try:
        return build()
    except (ValueError, TypeError) as error:  # out of range, a lone surrogate, not a number: from protobuf
        raise RequestError(f"the request cannot be sent: {error}") from None


def _item_ids(ids: Sequence[str] | Sequence[int], field: str) -> retrieval_pb2.ItemIds:
    if isinstance(ids, str | bytes):
        raise RequestError(f"{field} is one text, {ids!r:.60}; give a list of ids")
    values: list[Any] = [id_.item() if isinstance(id_, np.generic) else id_ for id_ in ids]
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return retrieval_pb2.ItemIds(strings=values)
    if kinds == {int}:
        return retrieval_pb2.ItemIds(ints=values)
    raise RequestError(
        f"{field} holds {', '.join(sorted(kind.__name__ for kind in kinds))}; ids are all str or all int, "
        "as the catalogue has them"
    )


def _id_list(ids: retrieval_pb2.ItemIds) -> ItemIdList:
    return list(ids.strings) or list(ids.ints)


def _interests(
    found: retrieval_pb2.Interests, reply: retrieval_pb2.RetrieveReply | retrieval_pb2.EncodeReply
) -> Interests:
    return Interests(
        vectors_KD=np.array(found.vectors, np.float32).reshape(found.num_interests, found.embedding_dim),
        attention_KL=np.array(found.attention, np.float32).reshape(found.num_interests, -1),
        attended_item_ids=_id_list(found.attended_items),
        version=reply.version,
        num_unknown_history_ids=reply.num_unknown_history_ids,
    )
