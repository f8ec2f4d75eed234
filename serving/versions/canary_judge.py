"""The judgement of a canary by the servers' metrics pages: failed calls, latency and recall."""

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
    max_recall_drop: float = 0.02
    """Of the mean recall, measured online."""
    min_samples: int = 20
    """Answers of each version whose recall was measured, before recalls are compared."""


@dataclass(kw_only=True)
class Counts:
    """What the servers counted, by version: `live`, and `canary` or `shadow`."""

    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    buckets: dict[str, Counter[float]] = field(default_factory=dict)
    """Calls at most so many seconds long."""
    num_samples: Counter[str] = field(default_factory=Counter)
    """Answers whose recall was measured."""
    recall_sums: dict[str, float] = field(default_factory=dict)
    """Sums of their recall."""
    versions: dict[str, str] = field(default_factory=dict)
    """Name of the version in each role."""

    def since(self, before: "Counts") -> "Counts":
        """Return what was counted after an earlier look."""
        return Counts(
            calls=self.calls - before.calls,
            faults=self.faults - before.faults,
            buckets={
                role: found - before.buckets.get(role, Counter()) for role, found in self.buckets.items()
            },
            num_samples=self.num_samples - before.num_samples,
            recall_sums={
                role: total - before.recall_sums.get(role, 0.0) for role, total in self.recall_sums.items()
            },
            versions=self.versions,
        )

    def recall(self, role: str) -> float | None:
        """Return the mean recall of a version's measured answers; None where none was measured."""
        num_samples = self.num_samples[role]
        return self.recall_sums[role] / num_samples if num_samples > 0 else None

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
    recall, recall_live = counts.recall(role), counts.recall("live")
    if (
        recall is not None
        and recall_live is not None
        and min(counts.num_samples[role], counts.num_samples["live"]) >= bounds.min_samples
        and recall < recall_live - bounds.max_recall_drop
    ):
        return (
            f"the recall of its {counts.num_samples[role]:,} measured answers is {recall:.3f}, the live "
            f"version's {recall_live:.3f}"
        )
    return None


def status_rows(counts: Counts, *, role: str) -> list[list[str]]:
    """Return a row each for the live version and the other one: calls, failed ones, p99 and recall."""
    rows = []
    for each in ("live", role):
        num_calls, recall = counts.calls[each], counts.recall(each)
        is_counted = bool(num_calls) and (each in counts.faults or role != "shadow")
        rows.append(
            [
                each,
                counts.versions.get(each, "–"),
                f"{num_calls:,}" if num_calls else "–",
                f"{counts.faults[each] / num_calls:.2%}" if is_counted else "–",
                f"≤ {1000 * counts.p99_s(each):g} ms" if counts.p99_s(each) else "–",
                "–" if recall is None else f"{recall:.3f} ({counts.num_samples[each]:,} answers)",
            ]
        )
    return rows


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
        recalls: dict[str, float] = {}
        samples: dict[str, int] = {}
        roles: dict[str, str] = {}
        try:
            with urllib.request.urlopen(page, timeout=_TIMEOUT_S) as found:  # noqa: S310 (the operator's address)
                text = found.read().decode()
            families = list(text_string_to_metric_families(text))
        except (OSError, ValueError) as error:
            raise ServerError(f"metrics page {page}: {error}") from None
        for family in families:
            for sample in family.samples:
                _add(counts, sample.name, sample.labels, sample.value)
                name = sample.labels.get("version", "")
                match sample.name:
                    case "re4_online_recall":
                        recalls[name] = sample.value
                    case "re4_online_recall_samples_total":
                        samples[name] = round(sample.value)
                    case "re4_live_version":
                        roles["live"] = name
                    case "re4_canary_share":
                        roles[sample.labels["mode"]] = name
        counts.versions |= roles
        for role, name in roles.items():
            if name in samples and name in recalls:
                counts.num_samples[role] += samples[name]
                total = counts.recall_sums.get(role, 0.0) + recalls[name] * samples[name]
                counts.recall_sums[role] = total
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
