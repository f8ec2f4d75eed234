"""Rejections by the header fields of a call, before anything is made for it.

While more calls arrive than can be answered, most of the work of a server is to reject them. The transport
therefore offers each call before it reads the message. A call that finds no place in the queue gets a status
that is made once for all calls that arrive together, and is counted together with them.

Some rejections a second take the usual way instead, and so have their own lines in the access log and their
own traces.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from re4.common.errors import OverloadError, Re4Error, TooLateError
from re4.serving.auth.authenticator import Authenticator
from re4.serving.auth.tokens import Caller, Scope
from re4.serving.batching.batcher import too_late
from re4.serving.batching.rejection_pacing import EARLY_BURST, EARLY_PER_S, RejectionQuota
from re4.serving.observability.call_context import REQUEST_ID, is_plain_id
from re4.serving.protocol.status_codes import status_of
from re4.serving.transports.transport import RETRY_PUSHBACK, Rejection, StatusError

_REQUEST_ID: Final = REQUEST_ID.encode()
_AUTHORIZATION: Final = "authorization"


class Overload:
    """The state of the queue for the calls that arrive in one turn of the event loop."""

    def __init__(self, num_unrejected: int, wait_ms: float, error: OverloadError, num_at_once: int) -> None:
        """Take the state.

        Args:
            num_unrejected: So many calls are not rejected here: the queue has room for them, or they are
                rejected in the usual way.
            wait_ms: How long a new call would wait.
            error: Of the calls that are rejected.
            num_at_once: So many of them are rejected at once, the others later.
        """
        pushback = ((RETRY_PUSHBACK, str(error.retry_after_ms)),)
        self.num_unrejected = num_unrejected
        self.wait_ms = wait_ms
        self.status = StatusError(status_of(type(error)), str(error), pushback)
        self.num_at_once = num_at_once
        self.num_rejected: Counter[tuple[str, bool, Caller | None]] = Counter()
        """By method, whether the caller's deadline was too near, and caller."""


class EarlyRejections:
    """Rejections of the calls of all methods that share batches. Belongs to one event loop."""

    def __init__(
        self,
        look: Callable[[int], Overload | None],
        count: Callable[[Overload], None],
        authenticator: Authenticator | None,
    ) -> None:
        """Reject nothing until `is_armed` is set.

        Args:
            look: Returns the state of the queue; None where there is no overload any more. Takes how many
                rejections may be at once.
            count: Counts the rejections.
            authenticator: Checks tokens; None where calls need none.
        """
        self._look = look
        self._count = count
        self.authenticator = authenticator
        self._quota = RejectionQuota(per_s=EARLY_PER_S, burst=EARLY_BURST)
        self.turn: Overload | None = None
        self.is_armed = False
        """Whether calls were rejected just now, so that the next ones must be offered to `reject`."""

    def of_method(self, name: str, scope: Scope) -> "MethodRejections":
        """Return the rejections of a method, whose calls need a scope."""
        return MethodRejections(self, name, scope)

    def begin_turn(self) -> Overload | None:
        """Look at the queue for the calls that arrive in this turn; None where there is no overload."""
        turn = self._look(self._quota.available())
        if turn is None:
            self.is_armed = False
        else:
            self.turn = turn
            asyncio.get_running_loop().call_soon(self._end_turn, turn)
        return turn

    def _end_turn(self, turn: Overload) -> None:
        self.turn = None
        if turn.num_rejected:
            self._quota.take(turn.num_rejected.total())
            self._count(turn)


class MethodRejections:
    """The rejections of one method."""

    __slots__ = ("_name", "_scope", "_shared")

    def __init__(self, shared: EarlyRejections, name: str, scope: Scope) -> None:
        self._shared = shared
        self._name = name
        self._scope = scope

    @property
    def is_armed(self) -> bool:
        """Whether calls must be offered to `reject` now."""
        return self._shared.is_armed

    def reject(self, fields: Mapping[bytes, bytes], time_left_s: float | None) -> Rejection | None:
        """Return the rejection of a call that arrives now; None where it must be handed over."""
        turn = self._shared.turn or self._shared.begin_turn()
        if turn is None:
            return None
        if turn.num_unrejected > 0:
            turn.num_unrejected -= 1
            return None
        caller = None
        if self._shared.authenticator is not None:
            try:
                caller = self._shared.authenticator.identify(_authorization(fields))
                caller.require(self._scope, self._name)
                if caller.rate is not None:  # last: what is rejected in the usual way is charged there
                    caller.rate.charge()
            except Re4Error:  # it is rejected for that, in the usual way
                return None
        status, is_late = turn.status, False
        if time_left_s is not None and time_left_s * 1e3 <= turn.wait_ms:
            status, is_late = _late(time_left_s, turn.wait_ms), True
        turn.num_rejected[self._name, is_late, caller] += 1
        turn.num_at_once -= 1
        given = fields.get(_REQUEST_ID)
        own = ((_REQUEST_ID, given),) if given is not None and is_plain_id(given) else ()
        return Rejection(status, own, turn.num_at_once < 0)


def _late(time_left_s: float, wait_ms: float) -> StatusError:
    return StatusError(status_of(TooLateError), str(too_late(time_left_s, wait_ms)))


def _authorization(fields: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    value = fields.get(_AUTHORIZATION.encode())
    return () if value is None else ((_AUTHORIZATION, value.decode("latin-1")),)
