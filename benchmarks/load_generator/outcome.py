"""The outcome of a call: a reply, or how it failed."""

from collections.abc import Callable
from typing import Final, TypeAlias

# How a call can fail: gRPC's status codes, over HTTP too, and one for unreadable replies.
MISSED_DEADLINE: Final = "DEADLINE_EXCEEDED"
UNREACHABLE: Final = "UNAVAILABLE"
UNREADABLE: Final = "UNREADABLE_REPLY"


class FailedCallError(Exception):
    """A call without an answer. Never leaves this package."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


Done: TypeAlias = Callable[[bytes | FailedCallError], None]
"""Takes the reply of a call, or its failure."""
