"""Every metric of a server: names, labels, buckets. Dashboards and alerts depend on this file.

A worker counts calls in `CallMetrics`. The supervisor, which answers no call, reports versions and workers in
`SupervisorMetrics`. `metrics_page.py` publishes both.
"""

import os
from bisect import bisect_left
from collections import Counter as TallyCounter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from re4.bundle.publishing.canary import Canary
from re4.common.errors import SecurityError
from re4.serving.auth.certificates import certificate_end

if TYPE_CHECKING:  # the supervisor, which loads no parser, reads this file too
    from re4.serving.retrieval.pipeline import StageTimes

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder of the workers' counts; prometheus-client reads it on import."""

CALL_SECONDS_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STAGE_SECONDS_BUCKETS: Final = (0.0001, 0.0002, 0.0005, *CALL_SECONDS_BUCKETS[:10])
BATCH_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

OVERLAP_BUCKETS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

STAGES: Final = ("check", "queue", "gather", "encode", "search", "merge", "reply")
"""In the order of a call. `check`, `queue` and `reply` are measured for each Retrieve and Encode, the others
once for each batch."""


def count_as_worker(number: int) -> None:
    """Count in the files of a worker's number: its successor continues them, so their number stays the same.

    Without a folder of counts, that is, without a metrics page, nothing is shared.
    """
    if FOLDER_VARIABLE in os.environ:
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class CallMetrics:
    """The counts of one worker process. The event loop and the worker thread may use it at once."""

    def __init__(self) -> None:
        """Start counting from zero, in a registry of its own."""
        registry = CollectorRegistry()
        self._calls = Counter(
            "re4_calls", "Calls that ended, by gRPC status code.", ["method", "code"], registry=registry
        )
        self._caller_calls = Counter(
            "re4_caller_calls",
            "Calls with a known token, by its caller's name and gRPC status code.",
            ["caller", "code"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "re4_call_seconds",
            "Seconds from a call's arrival in its handler to its end, for every status.",
            ["method"],
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self._ended: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        stage_seconds = Histogram(
            "re4_stage_seconds",
            "Seconds of answered calls by stage.",
            ["stage"],
            buckets=STAGE_SECONDS_BUCKETS,
            registry=registry,
        )
        self._stage_seconds = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self._batch_size = Histogram(
            "re4_batch_size",
            "Users in one batch: one run of the encoder and one search.",
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        self._shed = Counter(
            "re4_shed",
            "Calls rejected: the queue was too long (overload), the caller's deadline too near (deadline), "
            "the caller's own rate exceeded (rate), or earlier replies not read yet (replies).",
            ["reason"],
            registry=registry,
        )
        for reason in ("overload", "deadline", "rate", "replies"):
            self._shed.labels(reason)
        self._user_errors = Counter(
            "re4_batch_user_errors",
            "Users of BatchRetrieve without an answer, by gRPC status code.",
            ["code"],
            registry=registry,
        )
        self._exact_searches = Counter(
            "re4_exact_searches",
            "Answers that needed an exact search, because the index found too few eligible items.",
            registry=registry,
        )
        self._browned_out = Counter(
            "re4_browned_out",
            "Default searches that ran at lower search effort in a brown-out.",
            registry=registry,
        )
        self._dropped_samples = Counter(
            "re4_online_recall_dropped_samples",
            "Samples of live answers that a worker dropped because the supervisor did not read them.",
            registry=registry,
        )
        self._events = Counter(
            "re4_events",
            "Events of RecordEvents that are durable: new, or known before.",
            ["result"],
            registry=registry,
        )
        for result in ("new", "duplicate"):
            self._events.labels(result)
        self._event_lag_seconds = Histogram(
            "re4_event_lag_seconds",
            "Seconds from the time of a RecordEvents call's newest event until the call is durable.",
            buckets=(*CALL_SECONDS_BUCKETS, 10.0, 60.0, 600.0),
            registry=registry,
        )
        history_seconds = Histogram(
            "re4_history_store_seconds",
            "Seconds of a use of the store of histories: a look-up (read), a commit (append), or forget.",
            ["operation"],
            buckets=(0.00001, 0.00003, *STAGE_SECONDS_BUCKETS),
            registry=registry,
        )
        history_errors = Counter(
            "re4_history_store_errors",
            "Uses of the store of histories that failed.",
            ["operation"],
            registry=registry,
        )
        self._history_store = {
            operation: (history_seconds.labels(operation), history_errors.labels(operation))
            for operation in ("read", "append", "forget")
        }
        self._popular_items = Gauge(
            "re4_recently_popular_items",
            "Items that recorded events rank in the popularity fallback (popular_half_life_h).",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._index_up = Gauge(
            "re4_index_up",
            "1 while the index of the live version answers every worker; 0 while one on another machine "
            "(Milvus) is away.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._live_items = Gauge(
            "re4_live_items",
            "Live items that answers may contain: added or changed since the version was made.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._live_items_lag_seconds = Histogram(
            "re4_live_items_lag_seconds",
            "Seconds from a durable change of an item until this worker's answers show it.",
            buckets=(*CALL_SECONDS_BUCKETS, 10.0, 60.0, 600.0),
            registry=registry,
        )
        self._item_changes = Counter(
            "re4_item_changes",
            "Items that UpsertItems (upsert) and RemoveItems (removal) changed, durably.",
            ["change"],
            registry=registry,
        )
        for change in ("upsert", "removal"):
            self._item_changes.labels(change)
        self._item_commit_seconds = Histogram(
            "re4_item_commit_seconds",
            "Seconds of a commit of changed items, which many calls may share.",
            buckets=STAGE_SECONDS_BUCKETS,
            registry=registry,
        )
        self._item_commit_errors = Counter(
            "re4_item_commit_errors", "Commits of changed items that failed.", registry=registry
        )
        self._canary_calls = Counter(
            "re4_canary_calls",
            "Calls for candidates and interests while there is a canary, by the version that answered (live, "
            "canary) and gRPC status code.",
            ["role", "code"],
            registry=registry,
        )
        self._canary_seconds = Histogram(
            "re4_canary_call_seconds",
            "Seconds of these calls, by the version that answered.",
            ["role"],
            buckets=CALL_SECONDS_BUCKETS,
            registry=registry,
        )
        self._shadow_calls = Counter(
            "re4_shadow_calls",
            "Calls of the share that a shadow is compared on: compared, failed (the shadow had no answer), "
            "or dropped (it was busy, or calls waited).",
            ["result"],
            registry=registry,
        )
        for result in ("compared", "failed", "dropped"):
            self._shadow_calls.labels(result)
        self._shadow_seconds = Histogram(
            "re4_shadow_seconds",
            "Seconds of the batches that answered compared calls, by version (live, shadow).",
            ["role"],
            buckets=STAGE_SECONDS_BUCKETS,
            registry=registry,
        )
        self._shadow_overlap = Histogram(
            "re4_shadow_overlap",
            "Share of the live version's candidates that the shadow returned too.",
            buckets=OVERLAP_BUCKETS,
            registry=registry,
        )
        self.registry = registry

    def popular_items(self, num_items: int) -> None:
        """Set the number of items that recorded events rank in the popularity fallback."""
        self._popular_items.set(num_items)

    def canary_call(self, role: str, code: str, seconds: float) -> None:
        """Count a call while there is a canary: answered by `live` or by `canary`."""
        self._canary_calls.labels(role, code).inc()
        self._canary_seconds.labels(role).observe(seconds)

    def shadow(self, result: str) -> None:
        """Count a call of a shadow's share: `compared`, `failed` or `dropped`."""
        self._shadow_calls.labels(result).inc()

    def shadow_seconds(self, role: str, seconds: float) -> None:
        """Record how long the batch of a compared call took, of the version `live` or `shadow`."""
        self._shadow_seconds.labels(role).observe(seconds)

    def shadow_overlap(self, share: float) -> None:
        """Record the share of the live candidates that the shadow returned too."""
        self._shadow_overlap.observe(share)

    def live_items(self, num_items: int) -> None:
        """Set the number of live items."""
        self._live_items.set(num_items)

    def index_up(self, is_up: bool) -> None:
        """Record whether the index of the live version answers."""
        self._index_up.set(is_up)

    def live_items_lag(self, seconds: float) -> None:
        """Record how long the oldest change of a read was durable before answers showed it."""
        self._live_items_lag_seconds.observe(seconds)

    def items_changed(self, num_items: int, *, is_removal: bool) -> None:
        """Count items that a call changed."""
        self._item_changes.labels("removal" if is_removal else "upsert").inc(num_items)

    def items_committed(self, seconds: float, is_error: bool) -> None:
        """Record a commit of changed items."""
        self._item_commit_seconds.observe(seconds)
        if is_error:
            self._item_commit_errors.inc()

    def recorded(self, num_events: int, num_duplicates: int, lags_s: Sequence[float]) -> None:
        """Count events that are durable; for each call, the seconds since its newest event."""
        self._events.labels("new").inc(num_events)
        self._events.labels("duplicate").inc(num_duplicates)
        for lag_s in lags_s:
            self._event_lag_seconds.observe(lag_s)

    def store_call(self, operation: str, seconds: float, *, is_error: bool) -> None:
        """Count a use of the store of histories: `read`, `append` or `forget`."""
        duration, errors = self._history_store[operation]
        duration.observe(seconds)
        if is_error:
            errors.inc()

    def calls(self, method: str, code: str, seconds: Sequence[float]) -> None:
        """Count calls that ended."""
        ended = self._ended.get((method, code))
        if ended is None:  # a look-up of labels costs as much as the count
            ended = self._calls.labels(method, code), self._call_seconds.labels(method)
            self._ended[method, code] = ended
        ended[0].inc(len(seconds))
        _observe(ended[1], seconds)

    def caller(self, name: str, code: str, num_calls: int) -> None:
        """Count calls with a known token that ended."""
        self._caller_calls.labels(name, code).inc(num_calls)

    def stage(self, stage: str, seconds: Sequence[float]) -> None:
        """Record durations of a stage of `STAGES`."""
        _observe(self._stage_seconds[stage], seconds)

    def batch(self, times: "StageTimes") -> None:
        """Record a batch."""
        self._batch_size.observe(times.batch_size)
        self._exact_searches.inc(times.num_exact_searches)
        for stage in ("gather", "encode", "search", "merge"):
            self.stage(stage, (getattr(times, f"{stage}_us") / 1e6,))

    def shed(self, reason: str, num_calls: int = 1) -> None:
        """Count rejected or dropped calls: `overload`, `deadline`, `rate` or `replies`."""
        self._shed.labels(reason).inc(num_calls)

    def browned_out(self) -> None:
        """Count a default search at lower search effort."""
        self._browned_out.inc()

    def dropped_sample(self) -> None:
        """Count a sample of an answer that the supervisor did not read."""
        self._dropped_samples.inc()

    def user_error(self, code: str) -> None:
        """Count a user of a BatchRetrieve that got this gRPC status code instead of an answer."""
        self._user_errors.labels(code).inc()


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """Observe many values. An update of a histogram costs more than a call's own arithmetic."""
    if len(values) == 1:
        histogram.observe(values[0])
        return
    bounds = histogram._upper_bounds
    buckets = TallyCounter([bisect_left(bounds, value) for value in values])
    for bucket, num_values in buckets.items():
        histogram._buckets[bucket].inc(num_values)
    histogram._sum.inc(sum(values))


class WorkerUsage(Protocol):
    """The part of a worker process that the metrics read."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def thread_pools(self) -> Mapping[str, int]:
        """Its threads by pool."""
        ...


@dataclass(kw_only=True, eq=False)
class SupervisorMetrics(Collector):
    """The supervisor's facts, read at each scrape."""

    live: Path | None = None
    canary: Canary | None = None
    num_loads_ok: int = 0
    num_loads_failed: int = 0
    num_worker_restarts: int = 0
    num_unresponsive_workers: int = 0
    num_unreadable_reports: int = 0
    num_hidden: int = 0
    num_hidden_failed: int = 0
    num_rotations_ok: int = 0
    num_rotations_failed: int = 0
    recalls: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By version: number of measured answers, and the sum of their recall."""
    certificate: Path | None = None
    """The file of the server's certificate; None without TLS."""
    workers: Mapping[int, WorkerUsage] = field(default_factory=dict)
    """By number."""

    def observe_recall(self, version: str, recall: float) -> tuple[int, float]:
        """Add the measured recall of an answer; return the version's number of answers and their sum."""
        num_samples, total = self.recalls.get(version, (0, 0.0))
        self.recalls[version] = num_samples + 1, total + recall
        return self.recalls[version]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        loads = CounterMetricFamily(
            "re4_version_loads",
            "Bundle versions that went live (ok), or were refused (failed).",
            labels=["result"],
        )
        loads.add_metric(["ok"], self.num_loads_ok)
        loads.add_metric(["failed"], self.num_loads_failed)
        yield loads
        yield CounterMetricFamily(
            "re4_worker_restarts", "Worker processes that ended and were replaced.", self.num_worker_restarts
        )
        yield CounterMetricFamily(
            "re4_worker_unresponsive",
            "Workers that were killed because they sent no heartbeat in time.",
            self.num_unresponsive_workers,
        )
        yield CounterMetricFamily(
            "re4_worker_unreadable_reports",
            "Lines from workers to the supervisor that could not be read, such as one cut off by a crash.",
            self.num_unreadable_reports,
        )
        share = GaugeMetricFamily(
            "re4_canary_share",
            "Share of the calls that a canary answers, or that a shadow is compared on.",
            labels=["version", "mode"],
        )
        if self.canary is not None:
            mode = "shadow" if self.canary.is_shadow else "canary"
            share.add_metric([self.canary.version, mode], self.canary.share)
        yield share
        yield GaugeMetricFamily("re4_hidden_items", "Ids that no answer may contain.", self.num_hidden)
        yield CounterMetricFamily(
            "re4_hidden_items_refused",
            "Lists of hidden items that could not be used; the last good one stayed in force.",
            self.num_hidden_failed,
        )
        rotations = CounterMetricFamily(
            "re4_event_log_rotations",
            "Rotations of the event log: its waiting events were written to parts (ok), or stay (failed).",
            labels=["result"],
        )
        rotations.add_metric(["ok"], self.num_rotations_ok)
        rotations.add_metric(["failed"], self.num_rotations_failed)
        yield rotations
        recall = GaugeMetricFamily(
            "re4_online_recall",
            "Mean recall of sampled answers, compared with exact search, by version.",
            labels=["version"],
        )
        samples = CounterMetricFamily(
            "re4_online_recall_samples", "Answers whose recall was measured.", labels=["version"]
        )
        for name, (num_samples, total) in self.recalls.items():
            recall.add_metric([name], total / num_samples)
            samples.add_metric([name], num_samples)
        yield recall
        yield samples
        memory = GaugeMetricFamily(
            "re4_memory_bytes",
            "Memory in use: a worker's own, or mapped files whose pages workers share.",
            labels=["worker", "kind"],
        )
        threads = GaugeMetricFamily(
            "re4_threads", "Threads by pool, as the libraries report them.", labels=["worker", "pool"]
        )
        for number, worker in sorted(self.workers.items()):
            for kind, num_bytes in memory_of(worker.pid).items():
                memory.add_metric([str(number), kind], num_bytes)
            for pool, num_threads in worker.thread_pools.items():
                threads.add_metric([str(number), pool], num_threads)
        yield memory
        yield threads
        if self.certificate is not None:
            with suppress(SecurityError):  # the workers' logs have the reason
                yield GaugeMetricFamily(
                    "re4_certificate_end_seconds",
                    "Unix time at which the certificate in the server's file ends.",
                    certificate_end(self.certificate).timestamp(),
                )
        if self.live is not None:
            version = GaugeMetricFamily(
                "re4_live_version", "Always 1; the label is the live version.", labels=["version"]
            )
            version.add_metric([self.live.name], 1)
            yield version
            published = _published(self.live.name)
            if published is not None:
                yield GaugeMetricFamily(
                    "re4_index_age_seconds",
                    "Seconds since the live version was published.",
                    (datetime.now(UTC) - published).total_seconds(),
                )


def memory_of(pid: int) -> dict[str, int]:
    """Return the bytes of a process in memory, its `own` and mapped `files`; empty where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    names = {"own": "RssAnon", "files": "RssFile"}
    return {kind: int(sizes[name]) * 1024 for kind, name in names.items() if name in sizes}


def _published(version: str) -> datetime | None:
    """Return the time in a version's name; None where the digits are no time, such as month 99."""
    try:
        return datetime.strptime(version.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
