"""The judgement of a canary by the servers' metrics pages: failed calls and latency of both versions."""

import logging
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from re4.common.errors import ServerError

_FAULTS: Final = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"})
"""Statuses that are the server's fault, and not the caller's."""
_POLL_S: Final = 10.0
_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """By how much a canary may be worse than the live version."""

    max_error_rise: float = 0.01
    """Share of failed calls beyond the live version's."""
    max_latency_ratio: float = 1.5
    """Of the 99th percentiles."""
    min_calls: int = 100
    """Calls of the canary before it is judged."""


@dataclass(kw_only=True)
class Counts:
    """What the servers counted, by version: `live`, and `canary` or `shadow`."""

    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    buckets: dict[str, Counter[float]] = field(default_factory=dict)
    """Calls at most so many seconds long."""

    def since(self, before: "Counts") -> "Counts":
        """Return what was counted after an earlier look."""
        return Counts(
            calls=self.calls - before.calls,
            faults=self.faults - before.faults,
            buckets={
                role: found - before.buckets.get(role, Counter()) for role, found in self.buckets.items()
            },
        )

    def p99_s(self, role: str) -> float:
        """Return the upper end of the bucket with the 99th percentile of a version; 0 without a call."""
        found = self.buckets.get(role, Counter())
        total = max(found.values(), default=0)
        return (
            min((bound for bound, count in found.items() if count >= 0.99 * total), default=0.0)
            if total
            else 0.0
        )


def judge(counts: Counts, bounds: Bounds, *, role: str) -> str | None:
    """Return why a version is worse than the live one; None where it is not, or has too few calls to tell.

    Args:
        counts: Of the time in which both answered.
        bounds: How much worse is allowed.
        role: `canary` or `shadow`.
    """
    num_calls = counts.calls[role]
    if num_calls < bounds.min_calls:
        return None
    share = counts.faults[role] / num_calls
    share_live = counts.faults["live"] / max(1, counts.calls["live"])
    if share > share_live + bounds.max_error_rise:
        return f"{share:.2%} of its {num_calls:,} calls failed, of the live version's {share_live:.2%}"
    p99_s, live_s = counts.p99_s(role), counts.p99_s("live")
    if p99_s > bounds.max_latency_ratio * live_s > 0:
        return f"its p99 is up to {p99_s:g} s, the live version's up to {live_s:g} s"
    return None


def watch_canary(
    pages: Sequence[str],
    *,
    is_shadow: bool,
    minutes: float,
    bounds: Bounds,
    sleep: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> str | None:
    """Watch a canary, and return why it must not go live; None where it may.

    Args:
        pages: The metrics pages of all servers.
        is_shadow: Whether it is only compared.
        minutes: How long to watch.
        bounds: How much worse than the live version it may be.
        sleep: Waits.
        clock_s: Seconds since any moment.

    Raises:
        ServerError: a page cannot be read at the start.
    """
    role = "shadow" if is_shadow else "canary"
    before, ends_s = read_counts(pages), clock_s() + 60 * minutes
    counts = Counts()
    while clock_s() < ends_s:
        sleep(min(_POLL_S, max(0.0, ends_s - clock_s())))
        try:
            counts = read_counts(pages).since(before)
        except ServerError as error:  # a server that starts again; what it counted is not lost
            _log.warning("%s", error)
            continue
        if reason := judge(counts, bounds, role=role):
            return reason
    if counts.calls[role] < bounds.min_calls:
        return f"it had {counts.calls[role]:,} calls in {minutes:g} minutes, {bounds.min_calls:,} are needed"
    return None


def read_counts(pages: Sequence[str]) -> Counts:
    """Read the metrics pages of all servers.

    Raises:
        ServerError: a page cannot be read.
    """
    counts = Counts()
    for page in pages:
        try:
            with urllib.request.urlopen(page, timeout=_TIMEOUT_S) as found:  # noqa: S310 (the operator's address)
                text = found.read().decode()
            families = list(text_string_to_metric_families(text))
        except (OSError, ValueError) as error:
            raise ServerError(f"metrics page {page}: {error}") from None
        for family in families:
            for sample in family.samples:
                _add(counts, sample.name, sample.labels, sample.value)
    return counts


def _add(counts: Counts, name: str, labels: dict[str, str], value: float) -> None:
    number = round(value)
    if name == "re4_canary_calls_total":
        counts.calls[labels["role"]] += number
        counts.faults[labels["role"]] += number * (labels["code"] in _FAULTS)
    elif name == "re4_shadow_calls_total" and labels["result"] != "dropped":
        counts.calls["shadow"] += number
        counts.faults["shadow"] += number * (labels["result"] == "failed")
    elif name in ("re4_canary_call_seconds_bucket", "re4_shadow_seconds_bucket"):
        counts.buckets.setdefault(labels["role"], Counter())[float(labels["le"])] += number
