"""The thin client: candidates from a server, in plain Python values. Loads neither FAISS nor ONNX Runtime."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from re4.common.errors import RequestError, ServerError
from re4.protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from re4.serving.client.connection import Connection
from re4.serving.client.values import (
    AttributeFilter,
    Candidates,
    Interests,
    Reasons,
    RetrieveOptions,
    encode_request,
    retrieve_request,
    to_batch,
    to_candidates,
    to_facts,
    to_interests,
)

__all__ = [
    "AttributeFilter",
    "Candidates",
    "Connection",
    "Interests",
    "Reasons",
    "RetrievalClient",
    "RetrieveOptions",
]

_ReplyT = TypeVar("_ReplyT")


class RetrievalClient:
    """Calls to one server. Use it in a `with` block; safe to share between threads."""

    def __init__(
        self, address: str, *, timeout_s: float = 10.0, connection: Connection | None = None
    ) -> None:
        """Prepare a connection; it is made with the first call.

        Args:
            address: HOST:PORT of a server.
            timeout_s: How long one call may take, in seconds.
            connection: TLS and token, such as `Connection.read(ca=…, token_file=…)`; None for neither.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._connection = connection or Connection()
        self._channel = self._connection.channel(address)
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
        **options: Unpack[RetrieveOptions],
    ) -> Candidates:
        """Candidates for one user.

        Args:
            history: The user's items, oldest first, as the catalogue names them.
            num_candidates: How many.
            exclude: Items that must not be among them.
            options: See `RetrieveOptions`.

        Raises:
            RequestError: ids that are neither all strings nor all integers, or no such policy.
            ServerError: the server answered with an error, or none answered.
        """
        request = retrieve_request(history, num_candidates, exclude, options)
        return to_candidates(self._call(self._stub.Retrieve, request))

    def retrieve_batch(
        self,
        histories: Sequence[Sequence[str] | Sequence[int]],
        num_candidates: int = 50,
        *,
        exclude: Sequence[Sequence[str] | Sequence[int]] | None = None,
        **options: Unpack[RetrieveOptions],
    ) -> list[Candidates | ServerError]:
        """Candidates for many users in one call.

        Args:
            histories: Each user's items, oldest first; at most `max_num_users` of `info` in one call.
            num_candidates: How many for each user.
            exclude: For each user, items that must not be among them; None for nobody's.
            options: See `RetrieveOptions`; the same for all users.

        Returns:
            One entry for each user: candidates (their `stage_times` is empty), or why there are none.

        Raises:
            RequestError: as in `retrieve`, or `exclude` has not one entry for each user.
            ServerError: the server turned the whole call away, or none answered.
        """
        exclusions = exclude if exclude is not None else [()] * len(histories)
        if len(exclusions) != len(histories):
            raise RequestError(
                f"exclude has {len(exclusions)} entries for {len(histories)} histories; give one for each"
            )
        users = [
            retrieve_request(history, num_candidates, excluded, options)
            for history, excluded in zip(histories, exclusions, strict=True)
        ]
        reply = self._call(self._stub.BatchRetrieve, retrieval_pb2.BatchRetrieveRequest(users=users))
        return to_batch(reply)

    def encode(self, history: Sequence[str] | Sequence[int]) -> Interests:
        """One user's interests, without a search.

        Raises:
            RequestError: ids that are neither all strings nor all integers.
            ServerError: the server answered with an error, or none answered.
        """
        reply = self._call(self._stub.Encode, encode_request(history))
        return to_interests(reply.interests, reply.version, reply.num_unknown_history_ids)

    def info(self) -> dict[str, Any]:
        """The live version, model, index, limits and settings, by the names of `InfoReply`'s fields.

        Raises:
            ServerError: the server answered with an error, or none answered.
        """
        return to_facts(self._call(self._stub.Info, retrieval_pb2.InfoRequest()))

    def _call(self, method: Callable[..., _ReplyT], request: object) -> _ReplyT:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            # Every error that a call raises is also a Call, which carries status and details.
            code, details = error.code(), error.details()
            message = f"{code.name} from {self.address}: {details}"
            if code is grpc.StatusCode.UNAVAILABLE:
                message += (
                    ". Is a server running there, and does it speak TLS as this caller does? "
                    f"Start one: re4 serve --bundles DIR --address {self.address}"
                )
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"{code.name}: {self.address} did not answer within {self._timeout_s:g} seconds"
            raise ServerError(message) from error
