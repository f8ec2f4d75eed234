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

from re4.common.errors import Re4Error, RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import Answered
from re4.serving.api.validation import CheckedRequest, check_retrieve
from re4.serving.batching.batcher import Finished
from re4.serving.protocol.status_codes import status_of
from re4.serving.settings import ServerSettings
from re4.serving.versions.snapshot import Snapshot

_log = logging.getLogger(__name__)

Future: TypeAlias = "asyncio.Future[Finished[Answered]]"
Enqueue: TypeAlias = Callable[[Sequence[CheckedRequest], bool], list[Future]]
"""Queues requests of a call; the flag says that the call was let in before."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some consecutive users, checked and queued."""

    users: list[CheckedRequest | RequestError]
    futures: list[Future]
    """One for each user with whom nothing is wrong."""


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
            right = [user for user in users if isinstance(user, CheckedRequest)]
            queued.append(_Part(users=users, futures=enqueue(right, is_let_in)))
            is_let_in = is_let_in or bool(right)
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
        for user in part.users:
            self._add_user(user, None if isinstance(user, RequestError) else next(outcomes))

    def to_bytes(self) -> bytes:
        """The whole reply, serialised."""
        return b"".join((*self._candidates, self.message.SerializeToString()))

    def _add_user(
        self, user: CheckedRequest | RequestError, outcome: Finished[Answered] | BaseException | None
    ) -> None:
        """Add a user's candidates, and one entry to each list that has one for each user."""
        interests, reasons = retrieval_pb2.Interests(), retrieval_pb2.Reasons()
        num_candidates, num_unknown, is_popular = 0, 0, False
        if isinstance(user, RequestError):
            self._add_error(user)
        elif isinstance(outcome, BaseException):
            self._add_error(outcome)
        elif outcome is not None:
            answered = outcome.result
            answer = answered.answer
            self._candidates.append(answered.candidates)
            num_candidates, num_unknown = answered.num_candidates, answered.num_unknown_history_ids
            is_popular = answer is None
            if answer is not None and user.return_interests:
                interests = replies.interests(answer, answered.query, self._snapshot)
            if answer is not None and user.num_reasons:
                reasons = replies.reasons(answer, answered.query, user.num_reasons, self._snapshot)
        self.message.num_candidates.append(num_candidates)
        self.message.num_unknown_history_ids.append(num_unknown)
        self.message.is_popularity_fallback.append(is_popular)
        if self._has_interests:
            self.message.interests.append(interests)
        if self._has_reasons:
            self.message.reasons.append(reasons)

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
) -> CheckedRequest | RequestError:
    try:
        return check_retrieve(user, snapshot, settings.limits)
    except RequestError as error:
        return error


def _abandon(futures: Sequence[Future]) -> None:
    """Take nobody's place for a call that has ended; what failed meanwhile is nobody's news."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()
