"""Every error that this project raises on purpose, as one tree.

    Re4Error
    ├── UsageError               the command was given wrong words                        exit 2
    ├── DataError                an event log, catalogue or data set cannot be used
    │   └── FetchError           a public data set could not be fetched
    ├── RunError                 a training run is missing, unfinished or damaged
    ├── TrainingError            training stopped: a loss is not finite, no device, …
    ├── ExportError              a run could not be turned into a bundle version
    │   └── GateError            a version was made, but is not good enough to publish    exit 3
    ├── BundleError              a bundle directory or version cannot be used
    │   ├── BundleBusyError      another job is at work on the directory                  exit 4
    │   ├── BundleDamagedError   files missing, extra, truncated, changed or swapped
    │   └── BundleMismatchError  complete, but its parts do not belong together
    ├── SecurityError            a certificate, key or tokens file cannot be used
    ├── UnauthenticatedError     the call brings no token, or a wrong one                 UNAUTHENTICATED
    ├── RequestError             the caller's request is wrong                            INVALID_ARGUMENT
    │   └── NoUsableHistoryError the request is right, but nothing in it is known         FAILED_PRECONDITION
    ├── OverloadError            the server turns this request away
    │   ├── ShedError            it would wait longer than the server allows              RESOURCE_EXHAUSTED
    │   ├── RateError            its caller's own rate is used up                         RESOURCE_EXHAUSTED
    │   └── TooLateError         its deadline passes before its turn                      DEADLINE_EXCEEDED
    ├── NotReadyError            the server has no version to answer from                 UNAVAILABLE
    └── ServerError              the client's view: a call failed, or no server answered

Messages name the thing, the value seen, the value allowed, and the next step. They go to the person who
can act: the command prints them without a stack trace, the server sends them as status details.
"""

import math
from typing import ClassVar


class Re4Error(Exception):
    """Root of the tree: catch this to catch everything that this project raises on purpose."""

    exit_code: ClassVar[int] = 1
    """What the command ends with where this error stops it."""


class UsageError(Re4Error):
    """The command was given wrong words: options that contradict, a value out of range."""

    exit_code = 2


class DataError(Re4Error):
    """An event log, a catalogue or a prepared data set cannot be used."""


class FetchError(DataError):
    """A public data set could not be fetched from any of its sources."""


class RunError(Re4Error):
    """A training run's directory is missing, unfinished or damaged."""


class TrainingError(Re4Error):
    """Training stopped: a loss is not finite, the device is missing, nothing was learned."""


class ExportError(Re4Error):
    """A run could not be turned into a bundle version. Nothing was published."""


class GateError(ExportError):
    """A version was made, but a gate found it not good enough to publish. Nothing was published."""

    exit_code = 3


class BundleError(Re4Error):
    """A bundle directory or one of its versions cannot be used."""


class BundleBusyError(BundleError):
    """Another job is at work on the bundle directory; the message says whose, since when, and where."""

    exit_code = 4


class BundleDamagedError(BundleError):
    """Files of a version are missing, extra, truncated, changed or swapped."""


class BundleMismatchError(BundleError):
    """A version is complete, but its parts do not belong together or answer wrongly."""


class SecurityError(Re4Error):
    """A certificate, a key or a file of tokens cannot be used. Its message holds no secret."""


class UnauthenticatedError(Re4Error):
    """A call brings no token, or one that is not known. The message never repeats it."""


class RequestError(Re4Error):
    """A request is wrong: the message names the field, the value seen and the values allowed."""


class NoUsableHistoryError(RequestError):
    """A request's history is empty, or every id in it is unknown to the live version."""


class OverloadError(Re4Error):
    """The server turns this request away rather than answer it too late, or too often."""

    retry_after_ms: int | None = None
    """When trying again makes sense, in milliseconds; None where it does not."""


class ShedError(OverloadError):
    """This call would wait longer than the server allows; `retry_after_ms` says when to try again."""

    def __init__(self, *, wait_ms: float, max_wait_ms: float) -> None:
        """Make the error and the advice.

        Args:
            wait_ms: How long the call would have waited.
            max_wait_ms: How long a call may wait.
        """
        # By then half of the room is free again: callers who all came back at the limit would be shed again.
        self.retry_after_ms = max(1, math.ceil(wait_ms - max_wait_ms / 2))
        super().__init__(
            f"the server is overloaded: this call would wait about {wait_ms:.0f} ms for its turn, "
            f"{max_wait_ms:g} ms is allowed. Try again in {self.retry_after_ms} ms; where this lasts, "
            "give the server more processes or machines"
        )


class RateError(OverloadError):
    """The caller asks more often than its token allows; `retry_after_ms` says when to try again."""

    def __init__(self, name: str, *, users_per_s: float, wait_s: float) -> None:
        """Make the error and the advice.

        Args:
            name: Who calls.
            users_per_s: What the caller may ask for.
            wait_s: How soon the next call would be let in.
        """
        self.retry_after_ms = max(1, math.ceil(wait_s * 1e3))
        super().__init__(
            f"caller {name} asks for more than its {users_per_s:g} users per second. Try again in "
            f"{self.retry_after_ms} ms; where more is needed, its operator can raise users_per_s"
        )


class TooLateError(OverloadError):
    """The caller's deadline passes before this call's turn comes: no work is spent on it."""


class NotReadyError(Re4Error):
    """The server has no verified version to answer from yet."""


class ServerError(Re4Error):
    """A call failed: no server at the address, or the server answered with an error status."""
