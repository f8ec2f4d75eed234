"""What is known about a call while it runs, within reach of whatever runs for it."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from serving.tokens import Caller


@dataclass(slots=True, eq=False)
class Call:
    """One call."""

    method: str
    """Such as `Retrieve`."""
    caller: Caller | None = None
    """Whose token it brought; None where none is asked for."""

    def owe(self, num_users: int) -> None:
        """Charge the caller for users beyond the one that every call counts for."""
        if self.caller is not None and self.caller.rate is not None:
            self.caller.rate.owe(num_users)


CURRENT_CALL: Final[ContextVar[Call]] = ContextVar("current_call")
"""The call that the running task answers."""
