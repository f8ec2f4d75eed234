"""A line in the log for calls that ended: for those that failed, or for all, within a budget.

A flood of calls must not become a flood of lines: beyond so many a second they are counted, and the next line
says how many were left out.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from re4.serving.observability.call_context import Call
from re4.serving.observability.logs import FIELDS

_NO_ERRORS: Final = ("OK", "CANCELLED")
"""A caller who leaves, as those who ask two servers at once do, is no error."""

_log = logging.getLogger(__name__)


class AccessLog:
    """Writes the lines of one process."""

    def __init__(
        self, *, errors_only: bool, lines_per_s: float, clock_s: Callable[[], float] = monotonic
    ) -> None:
        """Begin with a full budget.

        Args:
            errors_only: Leave out calls that ended well.
            lines_per_s: So many lines a second, and as many at once.
            clock_s: Seconds since any moment.
        """
        self._errors_only = errors_only
        self._lines_per_s = lines_per_s
        self._clock_s = clock_s
        self._budget = lines_per_s
        self._since_s = clock_s()
        self._num_left_out = 0

    def ended(self, call: Call, code: str, details: str, seconds: float) -> None:
        """A call ended.

        Args:
            call: Which.
            code: Name of its gRPC status.
            details: What it was told; empty where it ended well.
            seconds: How long it took.
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
