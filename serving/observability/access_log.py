"""The access log: a line for each call that failed, or for every call, at a limited rate.

A flood of calls must not become a flood of lines. Beyond the limit calls are counted, and the next line has
the number of calls without a line.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from re4.serving.observability.call_context import Call
from re4.serving.observability.logs import FIELDS

_NO_ERRORS: Final = ("OK", "CANCELLED")
"""A cancelled call is no error: clients that send hedged requests cancel the slower one."""

_log = logging.getLogger(__name__)


class AccessLog:
    """The access log of one process."""

    def __init__(
        self, *, errors_only: bool, lines_per_s: float, clock_s: Callable[[], float] = monotonic
    ) -> None:
        """Start with a full budget of lines.

        Args:
            errors_only: Leave out calls that succeeded.
            lines_per_s: Most lines a second, and most lines at once.
            clock_s: Seconds since any moment.
        """
        self._errors_only = errors_only
        self._lines_per_s = lines_per_s
        self._clock_s = clock_s
        self._budget = lines_per_s
        self._since_s = clock_s()
        self._num_left_out = 0

    def left_out(self, num_calls: int) -> None:
        """Count calls that were rejected together, and get no line."""
        self._num_left_out += num_calls

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """Write the line of a call that ended.

        Args:
            call: The call.
            code: Name of its gRPC status.
            details: Details of an error status; empty where it succeeded.
            seconds: Duration of the call.
        """
        if self._errors_only and code in _NO_ERRORS:
            return
        now_s = self._clock_s()
        self._budget = min(self._lines_per_s, self._budget + (now_s - self._since_s) * self._lines_per_s)
        self._since_s = now_s
        if self._budget < 1:
            self._num_left_out += 1
            return
        self._budget -= 1
        fields = {"code": code, "ms": round(seconds * 1e3, 3)}
        if self._num_left_out:
            fields["num_left_out"], self._num_left_out = self._num_left_out, 0
        words = [call.method, code, f"{fields['ms']} ms"]
        if call.caller is not None:
            words.append(f"from {call.caller.name}")
        if "num_left_out" in fields:
            words.append(f"({fields['num_left_out']} more calls before it)")
        _log.info("%s%s", " ".join(words), f": {details}" if details else "", extra={FIELDS: fields})
