"""What is known about a call while it runs, within reach of whatever runs for it.

All of it is found out when somebody asks: a call that ends well, unwatched, costs one small object.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Final, TypeAlias

from serving.tokens import Caller

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

REQUEST_ID: Final = "x-request-id"
"""Metadata by which a caller names a call, and the server an error."""

_FIT: Final = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")


class Call:
    """One call. Belongs to its task."""

    __slots__ = ("_metadata", "_request_id", "caller", "method", "seconds", "stages")

    def __init__(self, method: str, metadata: Callable[[], Metadata | None] = tuple) -> None:
        """Begin a call.

        Args:
            method: Such as `Retrieve`.
            metadata: Gives what came with the call.
        """
        self.method = method
        self.caller: Caller | None = None
        """Whose token it brought; None where none is asked for, or none is known."""
        self.seconds: list[tuple[str, float]] = []
        """How long stages took, to be counted when the call has ended: its caller waits for the reply."""
        self.stages: tuple[tuple[str, float, float], ...] = ()
        """Name, begin and end (`perf_counter` seconds) of what was measured; filled only where traces are."""
        self._metadata = metadata
        self._request_id: str | None = None

    @property
    def metadata(self) -> Metadata:
        """What came with the call."""
        return self._metadata() or ()

    @property
    def request_id(self) -> str:
        """The caller's name for it where that is short and plain, else one made here."""
        if self._request_id is None:
            given = dict(self.metadata).get(REQUEST_ID)
            fits = isinstance(given, str) and _FIT.fullmatch(given)
            self._request_id = str(given) if fits else secrets.token_hex(8)
        return self._request_id

    def owe(self, num_users: int) -> None:
        """Charge the caller for users beyond the one that every call counts for."""
        if self.caller is not None and self.caller.rate is not None:
            self.caller.rate.owe(num_users)


CURRENT_CALL: Final[ContextVar[Call]] = ContextVar("current_call")
"""The call that the running task answers."""
