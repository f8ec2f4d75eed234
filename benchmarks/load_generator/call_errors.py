"""How a call can fail: the names of gRPC's status codes, over HTTP too, and one for unreadable replies."""

from typing import Final

MISSED_DEADLINE: Final = "DEADLINE_EXCEEDED"
UNREACHABLE: Final = "UNAVAILABLE"
UNREADABLE: Final = "UNREADABLE_REPLY"


class FailedCallError(Exception):
    """A call that got no answer. Never leaves this package."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
