"""One load put on a server several times, and whether the client or the server was what limited it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from re4.benchmarks.common.resources import Meter, OthersMeter, Usage
from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.client import ClientSettings, LoadClient
from re4.benchmarks.load_generator.load import ClosedLoad, Load, OpenLoad, Timing
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.transport import OURS, Callee
from re4.common.console import progress

MAX_CEILING_SHARE: Final = 0.8
"""A client near its own limit measures itself: a higher share of its ceiling is not offered."""
MAX_LAG_SHARE: Final = 0.5
"""At the 99th percentile, the client's own lateness may make up this share of the latency …"""
MIN_LAG_MS: Final = 5.0
"""… or be this small, in milliseconds."""
_CEILING_TIMING: Final = Timing(warmup_s=0.5, duration_s=1.5, deadline_s=10.0)
_CEILING_CALLERS: Final = 16
_MAX_TRIES: Final = 4


@dataclass(kw_only=True, eq=False)
class RepeatRun:
    """One of the runs at a load."""

    tally: Tally
    server: Usage | None
    client: Usage | None
    other_cores: float
    """Processors that everybody else on the client's machine kept busy."""


@dataclass(kw_only=True, eq=False)
class Point:
    """All runs at one load."""

    load: Load
    purpose: str
    """"measured", or "search" for a sweep's single tries."""
    ceiling_per_s: float
    """What the client does against a null server."""
    runs: list[RepeatRun] = field(default_factory=list)
    num_disturbed: int = 0
    """Runs that do not count, because others used the machine meanwhile."""

    @property
    def pooled(self) -> Tally:
        """The calls of all runs together."""
        whole = Tally()
        for run in self.runs:
            whole.append(run.tally)
        return whole

    @property
    def limit(self) -> str | None:
        """Why the client rather than the server made these figures; None where it did not."""
        tally = self.pooled
        if isinstance(self.load, ClosedLoad):
            if tally.achieved_per_s <= MAX_CEILING_SHARE * self.ceiling_per_s:
                return None
            return (
                f"{tally.achieved_per_s:,.0f} answers/s are over {MAX_CEILING_SHARE:.0%} of the "
                f"{self.ceiling_per_s:,.0f}/s that the client does against a null server"
            )
        lag_us, p99_ms = tally.lag_us.percentile(99), tally.percentile_ms(99)
        if lag_us is None:
            return None
        if p99_ms is None:  # among the failed calls, which count as slower than the slowest answer
            p99_ms = (tally.answered_us.max or 0) / 1000
        allowed_ms = max(MIN_LAG_MS, MAX_LAG_SHARE * p99_ms)
        if lag_us / 1000 > allowed_ms:
            return (
                f"the client sent 1 % of the calls {lag_us / 1000:.1f} ms late or later; beyond "
                f"{allowed_ms:.1f} ms, it and not the server makes a latency like this one"
            )
        return None


class StoppedError(Exception):
    """Measuring ended early; what there is by then is in the points. Never leaves this package."""


class Bench:
    """Puts loads on one server and keeps what came out, in order."""

    def __init__(
        self,
        client: LoadClient,
        *,
        timing: Timing,
        version: str,
        seed: int,
        ceiling_per_s: float,
        server_pids: Sequence[int],
        check_server: Callable[[], str | None],
        max_other_cores: float | None = None,
    ) -> None:
        """Wrap a connected client.

        Args:
            client: Connected to the server.
            timing: Of every run.
            version: The bundle version that is to answer.
            seed: Every run has arrival times of its own, which follow from it.
            ceiling_per_s: What the client can do, as `measure_ceiling` gives it.
            server_pids: The server's processes, where they run here.
            check_server: Asked after each run whether the server is still the one of the beginning; gives
                what is wrong.
            max_other_cores: A run in which others kept more processors busy than this is done again, a few
                times at most, whatever it found; None counts every run.
        """
        self._max_other_cores = max_other_cores
        self._client = client
        self._timing = timing
        self._version = version
        self._seed = seed
        self._server_pids = server_pids
        self._check_server = check_server
        self.ceiling_per_s = ceiling_per_s
        self.points: list[Point] = []

    @property
    def max_rate_per_s(self) -> float:
        """The highest rate that this client may be asked for."""
        return MAX_CEILING_SHARE * self.ceiling_per_s

    def measure(self, load: Load, *, num_runs: int, purpose: str = "measured") -> Point:
        """Put a load on the server so many times.

        Raises:
            StoppedError: interrupted, the server died or changed; the point so far is kept.
        """
        point = self.begin(load, purpose=purpose)
        for _ in range(num_runs):
            self.run_once(point, num_runs=num_runs)
        return point

    def begin(self, load: Load, *, purpose: str = "measured") -> Point:
        """A point without runs yet, kept with the others."""
        point = Point(load=load, purpose=purpose, ceiling_per_s=self.ceiling_per_s)
        self.points.append(point)
        return point

    def run_once(self, point: Point, *, num_runs: int) -> RepeatRun:
        """Put the load of a point on the server once more.

        Args:
            point: Of `begin`; keeps the run.
            num_runs: How many it will have, for the eye.

        Raises:
            StoppedError: as for `measure`.
        """
        title = f"{point.load.label}, {point.purpose}, run {len(point.runs) + 1} of {num_runs}"
        for tries_left in reversed(range(_MAX_TRIES)):
            self._seed += 1
            run = self._run(point.load, title=title)
            is_disturbed = self._max_other_cores is not None and run.other_cores > self._max_other_cores
            if not is_disturbed or run.tally.stopped or not tries_left:
                break
            point.num_disturbed += 1
        point.runs.append(run)
        if run.tally.stopped:
            raise StoppedError(run.tally.stopped)
        if problem := self._check_server():
            raise StoppedError(problem)
        return run

    def _run(self, load: Load, *, title: str) -> RepeatRun:
        server, client = Meter.of(self._server_pids), Meter.of(self._client.pids)
        others = OthersMeter([*self._server_pids, *self._client.pids])
        expected = round(load.rate_per_s * self._timing.sending_s) if isinstance(load, OpenLoad) else None
        with progress(title, expected) as bar:
            seen = 0

            def watch(num_answered: int, num_failed: int) -> str | None:
                nonlocal seen
                bar.advance(max(0, num_answered + num_failed - seen))
                seen = max(seen, num_answered + num_failed)
                bar.note(f"{num_failed} failed" if num_failed else "")
                return None

            tally = self._client.run(load, self._timing, seed=self._seed, version=self._version, watch=watch)
        return RepeatRun(
            tally=tally,
            server=server.read() if server else None,
            client=client.read() if client else None,
            other_cores=others.read(),
        )


def measure_ceiling(
    payloads: Sequence[bytes],
    reply: bytes,
    settings: ClientSettings,
    *,
    version: str,
    callee: Callee = OURS,
) -> float:
    """Calls per second that this client does against a server that does nothing.

    Client and null server share this machine, so the true ceiling against another machine is higher.

    Args:
        payloads: As in the benchmark.
        reply: What the null server answers: a real reply, so that reading it costs the same.
        settings: The client's, as in the benchmark.
        version: The version that the reply names.
        callee: What is called: the null server is called in the same way.

    Raises:
        Re4Error: the null server did not start.
    """
    load = ClosedLoad(concurrency=_CEILING_CALLERS * settings.num_workers)
    with null_server(reply, callee) as null, LoadClient(null.address, payloads, settings, callee) as client:
        tally = client.run(load, _CEILING_TIMING, seed=0, version=version)
    if tally.stopped:
        raise KeyboardInterrupt
    return tally.achieved_per_s
