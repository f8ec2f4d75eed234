"""Many users in one call: answered in parts, each as large as a batch, so that others' calls get in between.

The call is let in or turned away as a whole; after that, what is wrong with one user is an entry in
`errors`. Knows requests and replies of one version; how queries are run is the caller's business.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import numpy as np

from protos.v1 import retrieval_pb2
from re4.errors import Re4Error, RequestError
from serving import replies, wire
from serving.batcher import Finished
from serving.merging import Merged
from serving.pipeline import NOTHING_MERGED, Answer, Query
from serving.requests import CheckedRequest, check_retrieve
from serving.settings import ServerSettings
from serving.snapshot import Snapshot
from serving.status import status_of

_log = logging.getLogger(__name__)

Future: TypeAlias = "asyncio.Future[Finished[Answer]]"
Enqueue: TypeAlias = Callable[[Sequence[Query], bool], list[Future]]
"""Queues queries of a call; the flag says that the call was let in before."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some consecutive users, checked and queued."""

    users: list[CheckedRequest | Re4Error]
    futures: list[Future]
    """One for each user who is neither wrong nor answered by popularity."""


async def batch_retrieve(
    request: retrieval_pb2.BatchRetrieveRequest,
    snapshot: Snapshot,
    settings: ServerSettings,
    enqueue: Enqueue,
) -> "BatchReply":
    """Answer all users of a call from one version.

    Raises:
        RequestError: no users, or too many.
        OverloadError: the call is not let in.
    """
    limit, num_users = settings.limits.max_num_users, len(request.users)
    if not 1 <= num_users <= limit:
        raise RequestError(f"users has {num_users} requests; it may have from 1 to {limit}")
    reply = BatchReply(
        snapshot,
        has_interests=any(user.return_interests for user in request.users),
        has_reasons=any(user.num_reasons for user in request.users),
    )
    queued: list[_Part] = []
    is_let_in = False
    try:
        for start in range(0, num_users, settings.max_batch_size):
            users = [
                _check(user, snapshot, settings)
                for user in request.users[start : start + settings.max_batch_size]
            ]
            queries = [query for user in users if (query := _query_of(user)) is not None]
            queued.append(_Part(users=users, futures=enqueue(queries, is_let_in)))
            is_let_in = is_let_in or bool(queries)
            # One part is in the lane while the next one waits, so that the lane need not rest.
            if len(queued) > 1:
                await reply.add(queued.pop(0))
        await reply.add(queued.pop())
    finally:
        for part in queued:  # only where the call ended early
            _abandon(part.futures)
    return reply


class BatchReply:
    """The reply as it grows: candidates as bytes on the wire, everything else as a message."""

    def __init__(self, snapshot: Snapshot, *, has_interests: bool, has_reasons: bool) -> None:
        self.message = retrieval_pb2.BatchRetrieveReply(version=snapshot.manifest.version)
        self._candidates: list[bytes] = []
        self._snapshot = snapshot
        self._has_interests = has_interests
        self._has_reasons = has_reasons
        self._logged: BaseException | None = None

    async def add(self, part: _Part) -> None:
        """Wait for a part's answers and add them."""
        try:
            outcomes = iter(await asyncio.gather(*part.futures, return_exceptions=True))
        finally:
            _abandon(part.futures)
        merged = [
            self._add_user(user, None if _query_of(user) is None else next(outcomes)) for user in part.users
        ]
        joined = Merged(*(np.concatenate(column) for column in zip(*merged, strict=True)))
        self._candidates.append(wire.candidates(joined, self._snapshot.item_ids))
        self.message.num_candidates.extend(len(found.rows_M) for found in merged)

    def to_bytes(self) -> bytes:
        """The whole reply, serialised."""
        return b"".join((*self._candidates, self.message.SerializeToString()))

    def _add_user(
        self, user: CheckedRequest | Re4Error, outcome: Finished[Answer] | BaseException | None
    ) -> Merged:
        """Add what is one entry for each user; the candidates are returned."""
        merged, interests, reasons = NOTHING_MERGED, retrieval_pb2.Interests(), retrieval_pb2.Reasons()
        num_unknown, is_popular = 0, False
        if isinstance(user, Re4Error):
            self._add_error(user)
        elif isinstance(outcome, BaseException):
            self._add_error(outcome)
        else:
            num_unknown, is_popular = user.num_unknown_history_ids, outcome is None
            if outcome is None:
                rows = replies.popular_rows(user, self._snapshot)
                merged = Merged(rows, np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int64))
            else:
                merged = outcome.result.merged
                if user.return_interests:
                    interests = replies.interests(outcome.result, user.query, self._snapshot)
                if user.num_reasons:
                    reasons = replies.reasons(outcome.result, user, self._snapshot)
        self.message.num_unknown_history_ids.append(num_unknown)
        self.message.is_popularity_fallback.append(is_popular)
        if self._has_interests:
            self.message.interests.append(interests)
        if self._has_reasons:
            self.message.reasons.append(reasons)
        return merged

    def _add_error(self, error: BaseException) -> None:
        code, message = grpc.StatusCode.INTERNAL, "this user's search failed; the server's log says why"
        if isinstance(error, Re4Error):
            code, message = status_of(type(error)), str(error)
        if code is grpc.StatusCode.INTERNAL and error is not self._logged:  # one for all users of a batch
            self._logged = error
            _log.error("BatchRetrieve, one user: %s", message, exc_info=error)
        user = len(self.message.num_unknown_history_ids)
        self.message.errors.add(user=user, code=code.value[0], message=message)


def _check(
    user: retrieval_pb2.RetrieveRequest, snapshot: Snapshot, settings: ServerSettings
) -> CheckedRequest | Re4Error:
    try:
        return check_retrieve(user, snapshot, settings)
    except RequestError as error:
        return error


def _query_of(user: CheckedRequest | Re4Error) -> Query | None:
    """What to run for a user; None for one who is answered without, or wrong."""
    if isinstance(user, Re4Error) or user.is_popularity_fallback:
        return None
    return user.query


def _abandon(futures: Sequence[Future]) -> None:
    """Take nobody's place for a call that has ended; what failed meanwhile is nobody's news."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()
