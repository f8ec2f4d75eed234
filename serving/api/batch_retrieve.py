"""BatchRetrieve: many users in one call, answered in parts between which other calls get their turn.

The call is admitted or rejected as a whole. After that, an error of one user is an entry of
`errors`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from re4.common.errors import Re4Error, RequestError
from re4.protos.v1 import retrieval_pb2
from re4.serving.api import replies
from re4.serving.api.batch_handler import RequestResult
from re4.serving.api.validation import CheckedRequest, check_user
from re4.serving.batching.batcher import QueuedRequest
from re4.serving.protocol.status_codes import StatusCode, status_of
from re4.serving.settings import ServerSettings
from re4.serving.versions.snapshot import Snapshot

_log = logging.getLogger(__name__)

Queued: TypeAlias = QueuedRequest[CheckedRequest, RequestResult]
Enqueue: TypeAlias = Callable[[Sequence[CheckedRequest], bool], list[Queued]]
"""Queues requests of a call; the flag is set where the call was admitted before."""
LookUp: TypeAlias = Callable[[Sequence[CheckedRequest]], Awaitable[list[CheckedRequest | Re4Error]]]
"""Returns the requests with the stored histories of their users, or the error of each."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some consecutive users, checked and queued."""

    users: list[CheckedRequest | Re4Error]
    queued: list[Queued]
    """One for each user without an error."""


async def batch_retrieve(
    request: retrieval_pb2.BatchRetrieveRequest,
    snapshot: Snapshot,
    settings: ServerSettings,
    enqueue: Enqueue,
    look_up: LookUp,
    charge: Callable[[int], None],
    hold: Callable[[int], None],
) -> "BatchReply":
    """Answer all users of a call by one version.

    Args:
        request: As it came.
        snapshot: The version that answers it.
        settings: For the limits and the size of a part.
        enqueue: Queues requests.
        look_up: Looks up the stored histories of a part's users.
        charge: Charges the caller for so many users. A rejected call and the parts that a call did not
            reach are not charged.
        hold: Counts bytes of the reply, part by part.

    Raises:
        RequestError: no users, or too many.
        OverloadError: the call is rejected, or its reply may not grow further.
    """
    limit, num_users = settings.limits.max_num_users, len(request.users)
    if not 1 <= num_users <= limit:
        raise RequestError(f"users has {num_users} requests; it may have from 1 to {limit}")
    reply = BatchReply(
        snapshot,
        has_interests=any(user.return_interests for user in request.users),
        has_reasons=any(user.num_reasons for user in request.users),
        has_marks=any(user.num_new_items for user in request.users),
        hold=hold,
    )
    parts: list[_Part] = []
    is_admitted = False
    try:
        for start in range(0, num_users, settings.max_batch_size):
            users: list[CheckedRequest | Re4Error] = [
                check_user(user, snapshot, settings)
                for user in request.users[start : start + settings.max_batch_size]
            ]
            if any(isinstance(user, CheckedRequest) and user.user_id for user in users):
                found = iter(await look_up([user for user in users if isinstance(user, CheckedRequest)]))
                users = [next(found) if isinstance(user, CheckedRequest) else user for user in users]
            valid = [user for user in users if isinstance(user, CheckedRequest)]
            parts.append(_Part(users=users, queued=enqueue(valid, is_admitted)))
            is_admitted = is_admitted or bool(valid)
            charge(len(users))
            # The next part waits while one runs, so that the worker thread is never idle.
            if len(parts) > 1:
                await reply.add(parts.pop(0))
        await reply.add(parts.pop())
    finally:
        for part in parts:  # only where the call ended early
            _abandon(part.queued)
    return reply


class BatchReply:
    """The reply, filled part by part: candidates as bytes, everything else as a message."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        has_interests: bool,
        has_reasons: bool,
        has_marks: bool,
        hold: Callable[[int], None],
    ) -> None:
        self.message = retrieval_pb2.BatchRetrieveReply(
            version=snapshot.manifest.version, is_canary=snapshot.is_canary
        )
        self._candidates: list[bytes] = []
        self._snapshot = snapshot
        self._has_interests = has_interests
        self._has_reasons = has_reasons
        self._has_marks = has_marks
        self._hold = hold
        self._logged: BaseException | None = None

    async def add(self, part: _Part) -> None:
        """Wait for a part's results and add them."""
        try:
            outcomes = iter(await asyncio.gather(*part.queued, return_exceptions=True))
        finally:
            _abandon(part.queued)
        for user in part.users:
            self._add_user(user, None if isinstance(user, Re4Error) else next(outcomes))

    def to_bytes(self) -> bytes:
        """Return the whole reply, serialised."""
        return b"".join((*self._candidates, self.message.SerializeToString()))

    def _add_user(
        self, user: CheckedRequest | Re4Error, outcome: RequestResult | BaseException | None
    ) -> None:
        """Add a user's candidates, and one entry to each list that has one for each user."""
        interests, reasons = retrieval_pb2.Interests(), retrieval_pb2.Reasons()
        num_candidates, num_unknown, is_popular = 0, 0, False
        if isinstance(user, CheckedRequest) and user.is_history_missing:
            self.message.users_without_history.append(len(self.message.num_candidates))
        if isinstance(user, Re4Error):
            self._add_error(user)
        elif isinstance(outcome, BaseException):
            self._add_error(outcome)
        elif outcome is not None:
            self._candidates.append(outcome.candidates)
            num_candidates, num_unknown = outcome.num_candidates, outcome.num_unknown_history_ids
            found = outcome.query_result
            num_bytes = len(outcome.candidates)
            if found is not None and user.return_interests:
                num_bytes += found.interests_KD.nbytes + found.attention_KL.nbytes
            self._hold(num_bytes)
            is_popular = found is None
            if self._has_marks:
                self.message.is_new.extend(replies.marks(outcome) or [False] * num_candidates)
            if found is not None and user.return_interests:
                interests = replies.interests(found, self._snapshot)
            if found is not None and user.num_reasons:
                reasons = replies.reasons(found, user.num_reasons, self._snapshot)
        self.message.num_candidates.append(num_candidates)
        self.message.num_unknown_history_ids.append(num_unknown)
        self.message.is_popularity_fallback.append(is_popular)
        if self._has_interests:
            self.message.interests.append(interests)
        if self._has_reasons:
            self.message.reasons.append(reasons)

    def _add_error(self, error: BaseException) -> None:
        code, message = StatusCode.INTERNAL, "this user's search failed; the server's log says why"
        if isinstance(error, Re4Error):
            code, message = status_of(type(error)), str(error)
        if code is StatusCode.INTERNAL and error is not self._logged:  # once for all users of a batch
            self._logged = error
            _log.error("BatchRetrieve, one user: %s", message, exc_info=error)
        user = len(self.message.num_unknown_history_ids)
        self.message.errors.add(user=user, code=code.value, message=message)


def _abandon(queued: Sequence[Queued]) -> None:
    """Cancel the requests of a call that ended, and ignore their errors."""
    for request in queued:
        if not request.cancel() and not request.cancelled():
            request.exception()
