"""Runs of a load on a server, and whether the client or the server limited them."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from re4.benchmarks.common.resources import Meter, OthersMeter, Usage
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Load, OpenLoad, Timing
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.transport import RETRIEVE, Transport
from re4.common.console import progress

MAX_CEILING_SHARE: Final = 0.8
"""A client near its own limit measures itself: a higher share of its ceiling is not offered."""
MAX_LAG_SHARE: Final = 0.5
"""At the 99th percentile, the client's own lateness may make up this share of the latency …"""
MIN_LAG_MS: Final = 5.0
"""… or be this small, in milliseconds."""
_CEILING_TIMING: Final = Timing(warmup_s=0.5, duration_s=1.5, deadline_s=10.0)
_CEILING_CLIENTS: Final = 16
_MAX_TRIES: Final = 4


class StoppedError(Exception):
    """Measuring ended early; the points keep what was measured. Never leaves `re4.benchmarks`."""


@dataclass(kw_only=True, eq=False)
class RepeatRun:
    """One of the runs at a load."""

    stats: CallStats
    server: Usage | None
    client: Usage | None
    other_cores: float
    """CPUs that other processes of the client's machine kept busy."""


@dataclass(kw_only=True, eq=False)
class LoadPoint:
    """All runs at one load."""

    load: Load
    purpose: str
    """"measured", or "search" for a sweep's single tries."""
    ceiling_per_s: float
    """Calls per second of the client against a null server."""
    runs: list[RepeatRun] = field(default_factory=list)
    num_disturbed: int = 0
    """Runs that do not count, because others used the machine meanwhile."""

    @property
    def pooled(self) -> CallStats:
        """The calls of all runs together."""
        whole = CallStats()
        for run in self.runs:
            whole.add(run.stats, operator.add)
        return whole

    @property
    def limit(self) -> str | None:
        """Why the client rather than the server limited these figures; None where it did not."""
        stats = self.pooled
        if isinstance(self.load, ClosedLoad):
            if stats.achieved_per_s <= MAX_CEILING_SHARE * self.ceiling_per_s:
                return None
            return (
                f"{stats.achieved_per_s:,.0f} answers/s are over {MAX_CEILING_SHARE:.0%} of the "
                f"{self.ceiling_per_s:,.0f}/s that the client does against a null server"
            )
        lag_ms, p99_ms = stats.lag_us.percentile_ms(99), stats.percentile_ms(99)
        if p99_ms is None:  # among the failed calls, which count as slower than the slowest answer
            p99_ms = (stats.answered_us.max or 0) / 1000
        allowed_ms = max(MIN_LAG_MS, MAX_LAG_SHARE * p99_ms)
        if lag_ms is None or lag_ms <= allowed_ms:
            return None
        return (
            f"the client sent 1 % of the calls {lag_ms:.1f} ms late or later; beyond "
            f"{allowed_ms:.1f} ms, it and not the server makes a latency like this one"
        )


@dataclass(kw_only=True, eq=False)
class LoadRunner:
    """Puts loads on one server and keeps the points, in order."""

    client: LoadClient
    """Connected to the server."""
    timing: Timing
    version: str
    """The bundle version that must answer."""
    seed: int
    """Every run has arrival times of its own, which follow from it."""
    ceiling_per_s: float
    """Calls per second of the client, by `measure_ceiling`."""
    server_pids: Sequence[int]
    """The server's processes, where they run here."""
    check_server: Callable[[], str | None]
    """Called after each run; returns the problem where the server is another one now."""
    max_other_cores: float | None = None
    """A run in which others kept more CPUs busy is repeated, a few times at most; None counts every run."""
    points: list[LoadPoint] = field(default_factory=list)

    @property
    def max_rate_per_s(self) -> float:
        """The highest rate that this client may offer."""
        return MAX_CEILING_SHARE * self.ceiling_per_s

    def measure(self, load: Load, *, num_runs: int, purpose: str = "measured") -> LoadPoint:
        """Put a load on the server `num_runs` times.

        Raises:
            StoppedError: interrupted, or the server died or changed; the point so far is kept.
        """
        point = self.begin(load, purpose=purpose)
        for _ in range(num_runs):
            self.run_once(point, num_runs=num_runs)
        return point

    def begin(self, load: Load, *, purpose: str = "measured") -> LoadPoint:
        """Return a point without runs, kept with the others."""
        self.points.append(LoadPoint(load=load, purpose=purpose, ceiling_per_s=self.ceiling_per_s))
        return self.points[-1]

    def run_once(self, point: LoadPoint, *, num_runs: int) -> RepeatRun:
        """Put the load of a point on the server once more; `num_runs` is for the progress line."""
        title = f"{point.load.label}, {point.purpose}, run {len(point.runs) + 1} of {num_runs}"
        for tries_left in reversed(range(_MAX_TRIES)):
            self.seed += 1
            run = self._run(point.load, title=title)
            is_disturbed = self.max_other_cores is not None and run.other_cores > self.max_other_cores
            if not is_disturbed or run.stats.stopped or not tries_left:
                break
            point.num_disturbed += 1
        point.runs.append(run)
        if problem := run.stats.stopped or self.check_server():
            raise StoppedError(problem)
        return run

    def _run(self, load: Load, *, title: str) -> RepeatRun:
        server, client = Meter(self.server_pids), Meter(self.client.pids)
        others = OthersMeter([*self.server_pids, *self.client.pids])
        expected = round(load.rate_per_s * self.timing.sending_s) if isinstance(load, OpenLoad) else None
        with progress(title, expected) as bar:
            seen = 0

            def watch(num_answered: int, num_failed: int) -> str | None:
                nonlocal seen
                bar.advance(max(0, num_answered + num_failed - seen))
                seen = max(seen, num_answered + num_failed)
                bar.note(f"{num_failed} failed" if num_failed else "")
                return None

            stats = self.client.run(load, self.timing, seed=self.seed, version=self.version, watch=watch)
        return RepeatRun(stats=stats, server=server.read(), client=client.read(), other_cores=others.read())


def measure_pairs(first: LoadRunner, second: LoadRunner, load: Load, *, num_pairs: int) -> None:
    """Put a load on two servers, interleaved; the order alternates.

    A slow phase of the machine slows both of a pair.
    """
    sides = [(runner, runner.begin(load)) for runner in (first, second)]
    for pair in range(num_pairs):
        for runner, point in sides if pair % 2 == 0 else sides[::-1]:
            runner.run_once(point, num_runs=num_pairs)


def measure_ceiling(
    payloads: Sequence[bytes],
    reply: bytes,
    settings: ClientSettings,
    *,
    version: str,
    transport: Transport = RETRIEVE,
) -> float:
    """Return the calls per second of a client against a null server.

    Both share this machine, so the true ceiling against another machine is higher. The null server sends a
    real reply, so that parsing it costs the same.
    """
    load = ClosedLoad(concurrency=_CEILING_CLIENTS * settings.num_workers)
    with (
        null_server(reply, transport) as (address, _),
        LoadClient(address, payloads, settings, transport) as client,
    ):
        stats = client.run(load, _CEILING_TIMING, seed=0, version=version)
    if stats.stopped:
        raise KeyboardInterrupt
    return stats.achieved_per_s
