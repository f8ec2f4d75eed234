"""The tree of the errors that this project raises on purpose.

    Re4Error
    ├── UsageError               an option or argument is wrong                           exit 2
    ├── DataError                an event log, catalogue or data set cannot be used
    │   └── FetchError           a public data set could not be fetched
    ├── RunError                 a training run is missing, unfinished or damaged
    ├── TrainingError            training stopped: a loss is not finite, no device, …
    ├── ExportError              a run could not be turned into a bundle version
    │   └── GateError            a version was made, but is not good enough to publish    exit 3
    ├── BundleError              a bundle directory or version cannot be used
    │   ├── BundleBusyError      another job is at work on the directory                  exit 4
    │   ├── BundleDamagedError   files missing, extra, truncated, changed or swapped
    │   ├── BundleMismatchError  complete, but its parts do not belong together
    │   ├── BundleUnavailableError  cannot be read at this moment: try again
    │   ├── BundleReadOnlyError  a mirror of object storage: change that one              FAILED_PRECONDITION
    │   └── LiveItemsError       changes of items cannot be made durable                   UNAVAILABLE
    ├── SecurityError            a certificate, key or tokens file cannot be used
    ├── UnauthenticatedError     a call has no token, or a wrong one                      UNAUTHENTICATED
    ├── PermissionDeniedError    the token of a call lacks the scope of the call          PERMISSION_DENIED
    ├── RequestError             a request is wrong                                       INVALID_ARGUMENT
    │   └── NoUsableHistoryError no item of the history is known                          FAILED_PRECONDITION
    ├── OverloadError            the server rejects a call
    │   ├── ShedError            it would wait longer than the server allows              RESOURCE_EXHAUSTED
    │   ├── RateError            its caller is over the rate of its token                 RESOURCE_EXHAUSTED
    │   ├── UnreadRepliesError   earlier replies, not read yet, take the allowed memory    RESOURCE_EXHAUSTED
    │   └── TooLateError         its deadline passes before its turn                      DEADLINE_EXCEEDED
    ├── NotReadyError            the server has no version to answer from                 UNAVAILABLE
    ├── HistoryStoreError        the store of histories is away, slow, full or read-only  UNAVAILABLE
    ├── IndexUnavailableError    the index on another machine does not answer             UNAVAILABLE
    └── ServerError              in a client: a call failed, or no server answered

Messages name the thing, the value seen, the value allowed, and the next step. The command prints them
without a stack trace; the server sends them as status details.
"""

import errno
import math
from typing import ClassVar, Final


class Re4Error(Exception):
    """Root of all errors that this project raises on purpose."""

    exit_code: ClassVar[int] = 1
    """Exit code of a command that this error ends."""


class UsageError(Re4Error):
    """An option or argument is wrong: unknown, out of range, or in contradiction to another one."""

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
    """A version was made, but a quality gate failed. Nothing was published."""

    exit_code = 3


class BundleError(Re4Error):
    """A bundle directory or one of its versions cannot be used."""


class BundleBusyError(BundleError):
    """Another job is at work on the bundle directory. The message names its command, start and machine."""

    exit_code = 4


class BundleDamagedError(BundleError):
    """Files of a version are missing, extra, truncated, changed or swapped."""


class BundleMismatchError(BundleError):
    """A version is complete, but its parts do not belong together or answer wrongly."""


class BundleUnavailableError(BundleError):
    """Files cannot be read at this moment: no descriptors, no memory, a file system that does not answer.

    It is no verdict on the files: a later try may succeed.
    """


class BundleReadOnlyError(BundleError):
    """The directory mirrors object storage, where the change must be made. Nothing was changed."""


class LiveItemsError(BundleError):
    """Changes of items cannot be made durable: a full disk, damaged live items, too many. None counts."""


TRANSIENT_ERRNOS: Final = (
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    # network file systems
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
"""Conditions of the machine or of a network file system, not of a file's content."""


class SecurityError(Re4Error):
    """A certificate, a key or a file of tokens cannot be used. Its message holds no secret."""


class UnauthenticatedError(Re4Error):
    """A call has no token, or an unknown one. The message never repeats the token."""


class PermissionDeniedError(Re4Error):
    """The token of a call is known, but it lacks the scope that the call needs."""


class RequestError(Re4Error):
    """A request is wrong. The message names the field, the value seen and the values allowed."""


class NoUsableHistoryError(RequestError):
    """The history of a request is empty, or the version knows none of its ids."""


class OverloadError(Re4Error):
    """The server rejects a call instead of answering it too late, or above its caller's rate."""

    retry_after_ms: int | None = None
    """Milliseconds to wait before another try; None where another try is useless."""


class ShedError(OverloadError):
    """A call would wait longer than the server allows. `retry_after_ms` is set."""

    def __init__(self, *, wait_ms: float, max_wait_ms: float) -> None:
        """Make the error and the advice.

        Args:
            wait_ms: Estimated time in the queue.
            max_wait_ms: Longest time that the server allows.
        """
        # Half of the queue is free again by then. Callers who all came back at the limit would be shed again.
        self.retry_after_ms = max(1, math.ceil(wait_ms - max_wait_ms / 2))
        super().__init__(
            f"the server is overloaded: this call would wait about {wait_ms:.0f} ms for its turn, "
            f"{max_wait_ms:g} ms is allowed. Try again in {self.retry_after_ms} ms; where this lasts, "
            "give the server more processes or machines"
        )


class RateError(OverloadError):
    """A caller is over the rate of its token. `retry_after_ms` is set."""

    def __init__(self, name: str, *, users_per_s: float, wait_s: float) -> None:
        """Make the error and the advice.

        Args:
            name: Name of the caller.
            users_per_s: Rate of its token.
            wait_s: Seconds until its next call is admitted.
        """
        self.retry_after_ms = max(1, math.ceil(wait_s * 1e3))
        super().__init__(
            f"caller {name} asks for more than its {users_per_s:g} users per second. Try again in "
            f"{self.retry_after_ms} ms; where more is needed, its operator can raise users_per_s"
        )


class UnreadRepliesError(OverloadError):
    """Replies that were not read yet take all the memory that they may. `retry_after_ms` is set."""

    def __init__(self, owner: str, num_bytes: int, max_bytes: int) -> None:
        """Make the error and the advice.

        Args:
            owner: The caller, or all callers, in words.
            num_bytes: Size of their replies in flight.
            max_bytes: Largest size allowed.
        """
        self.retry_after_ms = 1000
        super().__init__(
            f"replies of {num_bytes} bytes to {owner} are not read yet, {max_bytes} are allowed. Read them, "
            f"and try again in {self.retry_after_ms} ms"
        )


class TooLateError(OverloadError):
    """The deadline of a call passes before its turn. No work is spent on it."""


class NotReadyError(Re4Error):
    """The server has no verified version yet."""


class HistoryStoreError(Re4Error):
    """The store of histories cannot be used at this moment. The message holds no user id."""


class IndexUnavailableError(Re4Error):
    """The index on another machine cannot be searched at this moment."""

    def __init__(self, message: str, *, is_late: bool = False, is_unreachable: bool = False) -> None:
        """Make the error.

        Args:
            message: The address, and what happened.
            is_late: Whether no answer came within the time.
            is_unreachable: Whether there is no connection. Neither of both: the server refused the search.
        """
        self.is_late = is_late
        self.is_unreachable = is_unreachable
        super().__init__(message)


class ServerError(Re4Error):
    """A call failed: no server at the address, or the server answered with an error status."""
