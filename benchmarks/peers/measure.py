"""Measurements of systems: one after the other up to the knee, or all of them interleaved.

A sweep takes minutes, and a shared machine may be half as fast at the time of the next system's. Interleaved
rounds therefore take all settings one after the other, and ratios are computed within a round. They are of
figures that take seconds: answers per second and CPU time at saturation, and a lone client's median. These
loads are closed loops, so pauses hardly show: rounds say what answers cost, sweeps how late they come.

A server has a core of its own, and so has the client; a null server that is called in the same way gives the
client's ceiling.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import psutil

from re4.benchmarks.common.cpu_stability import measure_cpu_stability
from re4.benchmarks.common.pinning import on_core
from re4.benchmarks.common.report import now_utc
from re4.benchmarks.load_generator.client import INTERRUPTED, LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, OpenLoad, Timing
from re4.benchmarks.load_generator.server import SATURATING
from re4.benchmarks.load_generator.transport import call_all, median_reply
from re4.benchmarks.peers.systems import OURS, System, Workload
from re4.benchmarks.serve.recall import NUM_RECALL_REQUESTS, ExactAnswers
from re4.benchmarks.serve.report import points_facts, ratios
from re4.benchmarks.serve.runner import LoadRunner, StoppedError, measure_ceiling
from re4.benchmarks.serve.sweep import find_knee
from re4.common.errors import ServerError
from re4.retriever import Retriever

_log = logging.getLogger(__name__)

LOADS: Final = {"saturation": SATURATING, "lone caller": ClosedLoad(concurrency=1)}
_FIRST_SHARE: Final = 0.25
"""Of saturation: the first rate of a sweep."""
_CLIENT: Final = ClientSettings(num_channels=8)
_MAX_OTHER_CORES: Final = 0.1
"""A run in which others used more of the machine is repeated."""


Entry: TypeAlias = tuple[System, str, int]
"""A system, its setting and its search effort."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for every system."""

    p99_ms: float
    """The objective: milliseconds that 99 % of the calls may take."""
    min_recall: float
    """Against exact search, on the same requests."""
    num_runs: int
    """At the knee."""
    timing: Timing
    seed: int
    cores: tuple[int, int]
    """Of the server and of the client."""


def exact_answers(workload: Workload) -> ExactAnswers:
    """Search exactly for the first requests, with interests of the version's encoder, in this process."""
    histories = workload.histories.ids[:NUM_RECALL_REQUESTS]
    with Retriever.open(workload.version) as retriever:
        interests = [retriever.encode(history).vectors for history in histories]
    return ExactAnswers(workload.version, np.stack(interests), workload.num_candidates)


def choose_effort(system: System, workload: Workload, exact: ExactAnswers, terms: Terms) -> int:
    """Return the lowest effort with enough recall; the highest where none has."""
    for effort in system.efforts[:-1]:
        with ExitStack() as stack:
            with on_core(terms.cores[0]):
                address, _ = stack.enter_context(
                    system.running(workload, next(iter(system.settings)), effort)
                )
            replies = call_all(system.transport, address, system.payloads(workload)[:NUM_RECALL_REQUESTS])
        recall = exact.recall([system.item_ids(reply) for reply in replies])["mean"]
        if recall >= terms.min_recall:
            return effort
        _log.info(f"{system.title}: recall {recall:.4f} at effort {effort}")
    return system.efforts[-1]


@contextmanager
def running_system(
    entry: Entry, workload: Workload, exact: ExactAnswers, terms: Terms, *, max_other_cores: float | None
) -> Iterator[tuple[LoadRunner, dict[str, Any]]]:
    """Run a system on the server's core, and a client for it on the other one, while the block runs.

    Gives the runner of its loads, and its facts for the report.
    """
    system, setting, effort = entry
    payloads, transport = system.payloads(workload), system.transport
    with ExitStack() as stack:
        with on_core(terms.cores[0]):
            address, pid = stack.enter_context(system.running(workload, setting, effort))
        replies = call_all(transport, address, payloads[:NUM_RECALL_REQUESTS])
        recall = exact.recall([system.item_ids(reply) for reply in replies])
        _log.info(f"{system.title}, {setting}: recall {recall['mean']:.4f}")
        reply = median_reply(replies)
        version = transport.parse(reply).version
        ceiling_per_s = measure_ceiling(payloads, reply, _CLIENT, version=version, transport=transport)
        with on_core(terms.cores[1]):
            client = stack.enter_context(LoadClient(address, payloads, _CLIENT, transport))
        runner = LoadRunner(
            client=client,
            timing=terms.timing,
            version=version,
            seed=terms.seed,
            ceiling_per_s=ceiling_per_s,
            server_pids=[pid],
            check_server=lambda: None if psutil.pid_exists(pid) else "the server ended",
            max_other_cores=max_other_cores,
        )
        yield (
            runner,
            {
                "system": system.name,
                "title": system.title,
                "setting": setting,
                "how": system.settings[setting],
                "client": system.client,
                "effort": effort,
                "recall": recall,
                "client_ceiling_per_s": ceiling_per_s,
            },
        )


def measure(entry: Entry, workload: Workload, exact: ExactAnswers, terms: Terms) -> dict[str, Any]:
    """Return everything about one setting; where it is interrupted, what was measured so far."""
    load_average, stability = os.getloadavg()[0], measure_cpu_stability()
    running = running_system(entry, workload, exact, terms, max_other_cores=_MAX_OTHER_CORES)
    with running as (runner, facts), on_core(terms.cores[1]):
        knee, problem = _sweep(runner, terms)
    return {
        **facts,
        "points": points_facts(runner),
        "created_at": now_utc(),
        "load_average_before": load_average,
        "steadiness_before": stability,
        "stopped": problem,
        "knee": knee,
    }


def _sweep(runner: LoadRunner, terms: Terms) -> tuple[dict[str, Any] | None, str | None]:
    """Return the knee, and why measuring ended early where it did."""
    try:
        for purpose, load in reversed(LOADS.items()):
            saturated = runner.measure(load, num_runs=1, purpose=purpose).pooled.achieved_per_s
        if not saturated:
            raise ServerError("the server answered none of the calls of its saturation")
        first = OpenLoad(rate_per_s=_FIRST_SHARE * saturated, arrivals="poisson")
        return find_knee(runner, first, p99_ms=terms.p99_ms, num_runs=terms.num_runs).facts(), None
    except StoppedError as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, INTERRUPTED


def measure_interleaved(
    entries: Sequence[Entry],
    workload: Workload,
    exact: ExactAnswers,
    terms: Terms,
    *,
    num_rounds: int,
) -> dict[str, Any]:
    """Load every system, each at its setting and effort, `num_rounds` times, interleaved.

    Returns:
        `settings`, each with its `points` and, but for ours, `ours_is_times`: for each load, ours as a
        multiple of its figures. Where it was `stopped`, what was measured so far.
    """
    stability = measure_cpu_stability()
    with ExitStack() as stack:
        systems = []
        for entry in entries:
            running = running_system(entry, workload, exact, terms, max_other_cores=None)
            runner, facts = stack.enter_context(running)
            points = {purpose: runner.begin(load, purpose=purpose) for purpose, load in LOADS.items()}
            systems.append((runner, facts, points))
        stack.enter_context(on_core(terms.cores[1]))
        order, problem = list(systems), None
        try:
            for number in range(num_rounds):
                _log.info(f"round {number + 1} of {num_rounds}")
                for runner, _, points in order:
                    for point in points.values():
                        runner.run_once(point, num_runs=num_rounds)
                order = order[1:] + order[:1]  # the order rotates
        except StoppedError as error:
            problem = str(error)
        except KeyboardInterrupt:
            problem = INTERRUPTED
    ours = next((points for _, facts, points in systems if facts["system"] == OURS), None)
    settings = []
    for runner, facts, points in systems:
        times = None
        if ours is not None and points is not ours:
            times = {purpose: ratios(points[purpose], ours[purpose]) for purpose in LOADS}
        settings.append({**facts, "points": points_facts(runner), "ours_is_times": times})
    return {
        "created_at": now_utc(),
        "num_rounds": num_rounds,
        "steadiness_before": stability,
        "stopped": problem,
        "settings": settings,
    }
