"""Every choice that a server is started with, checked once. Knows names and numbers, opens nothing.

The supervisor hands these to its worker processes as JSON, so that all of them run on the same choices.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final

from re4.errors import UsageError

DEFAULT_ADDRESS: Final = "127.0.0.1:8700"


class Fallback(StrEnum):
    """What a user without a usable history gets."""

    NONE = "none"
    """FAILED_PRECONDITION: the caller decides."""
    POPULAR = "popular"
    """The version's most popular items, marked as such in the reply."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; `Info` tells the callers."""

    max_num_candidates: int = 1_000
    """Candidates that one request may ask for."""
    max_num_history_ids: int = 10_000
    """Ids that one request may give as history; only the newest known ones are attended to."""
    max_num_excluded_ids: int = 10_000
    """Ids that one request may exclude."""
    max_num_users: int = 256
    """Users that one BatchRetrieve may have."""
    max_message_bytes: int = 1 << 20
    """Size of one request on the wire, in bytes."""

    def __post_init__(self) -> None:
        """Refuse limits that no request could keep.

        Raises:
            UsageError: a limit below 1.
        """
        for name, value in asdict(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server runs, whatever version it serves."""

    num_processes: int = 1
    """Worker processes that share the port, each with one compute lane."""
    max_batch_size: int = 64
    """Requests that one run of the encoder and one search may share."""
    max_queue_ms: float = 200.0
    """A call that would wait longer than this for its turn, in milliseconds, is shed on arrival."""
    merge_policy: str = "max-score"
    """Name of the policy, in `serving.merging`, that makes one list of the interests' lists."""
    fallback: Fallback = Fallback.NONE
    """What a user without a usable history gets."""
    reflection: bool = False
    """Whether the server describes its methods to anyone who asks (grpcurl does)."""
    poll_interval_s: float = 1.0
    """Seconds between two looks at `CURRENT`."""
    check_timeout_s: float = 600.0
    """Seconds that checking one version may take before the version is refused."""
    grace_s: float = 10.0
    """Seconds that calls in flight get to finish when the server is asked to stop."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UsageError: a number out of range.
        """
        for name in ("num_processes", "max_batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("poll_interval_s", "check_timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be more than 0 seconds")
        if not self.max_queue_ms >= 0:
            raise UsageError(f"max_queue_ms is {self.max_queue_ms}; it must be 0 milliseconds or more")
        if not self.grace_s >= 0:
            raise UsageError(f"grace_s is {self.grace_s}; it must be 0 seconds or more")

    def to_json(self) -> str:
        """The settings as one line, for `from_json` in another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerSettings":
        """The settings that `to_json` wrote."""
        values = json.loads(text)
        limits, fallback = Limits(**values.pop("limits")), Fallback(values.pop("fallback"))
        return cls(limits=limits, fallback=fallback, **values)
