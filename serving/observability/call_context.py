"""The context of a running call: method, caller, request id and stage times.

Everything is computed on demand: a call that succeeds without logs and traces costs one small object.
"""

import re
from collections.abc import Callable
from contextvars import ContextVar
from random import getrandbits
from typing import TYPE_CHECKING, Final, TypeAlias

from re4.serving.auth.tokens import Caller, Metadata

if TYPE_CHECKING:  # the supervisor, which loads no parser, reads this file too
    from re4.serving.retrieval.pipeline import StageTimes


Stage: TypeAlias = tuple[str, float, float]
"""Name, begin and end in `perf_counter` seconds."""
REQUEST_ID: Final = "x-request-id"
"""Metadata key of the id that a caller gives a call, and that the server returns with an error."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")
is_plain_id: Final = re.compile(_PLAIN.pattern.encode()).fullmatch
"""Matches the bytes of an id that is short and plain."""


class Call:
    """One call. Belongs to its task."""

    __slots__ = (
        "_metadata", "_num_prepaid", "_request_id",
        "caller", "hold", "method", "role", "seconds", "stages",
    )  # fmt: skip

    def __init__(self, method: str, metadata: Callable[[], Metadata | None] = tuple) -> None:
        """Begin a call.

        Args:
            method: Such as `Retrieve`.
            metadata: Returns the metadata of the call.
        """
        self.method = method
        self.caller: Caller | None = None
        """The owner of its token; None where no token is required, or none is known."""
        self.hold: Callable[[int], None] = lambda _: None
        """Counts bytes of the reply that is being made; raises where it may not grow."""
        self.role: str | None = None
        """The version that answers, while there is a canary: `live` or `canary`. None without one."""
        self.seconds: list[tuple[str, float]] = []
        """Durations of stages; counted after the call, because its caller waits for the reply."""
        self.stages: tuple[Stage, ...] = ()
        """The measured stages; filled only where traces are on."""
        self._metadata = metadata
        self._num_prepaid = 1
        self._request_id: str | None = None

    @property
    def metadata(self) -> Metadata:
        """The metadata of the call."""
        return self._metadata() or ()

    @property
    def request_id(self) -> str:
        """The caller's id of the call where that is short and plain, else a random one."""
        if self._request_id is None:
            given = dict(self.metadata).get(REQUEST_ID)
            fits = isinstance(given, str) and _PLAIN.fullmatch(given)
            self._request_id = str(given) if fits else f"{getrandbits(64):016x}"
        return self._request_id

    def charge(self, num_users: int) -> None:
        """Charge the caller for users whose work begins.

        `Authenticator.admit` charged the call's first user.
        """
        if self.caller is not None and self.caller.rate is not None:
            self.caller.rate.overdraw(num_users - self._num_prepaid)
        self._num_prepaid = 0


CURRENT_CALL: Final[ContextVar[Call]] = ContextVar("current_call")
"""The call that the running task answers."""


def stages_of(times: "StageTimes", queue_us: int, began_s: float) -> tuple[Stage, ...]:
    """Return the stages from the queue to the merged list, in order.

    Args:
        times: Stage times of the call's batch.
        queue_us: Time that the call waited for its batch.
        began_s: When it was queued, by `perf_counter`.
    """
    lengths_us = {
        "queue": queue_us,
        "gather": times.gather_us,
        "encode": times.encode_us,
        "search": times.search_us,
        "merge": times.merge_us,
    }
    stages = []
    for name, length_us in lengths_us.items():
        ended_s = began_s + length_us / 1e6
        stages.append((name, began_s, ended_s))
        began_s = ended_s
    return tuple(stages)
