"""One system at one setting: its recall, a lone caller, saturation, and a sweep to the knee.

The server has a core of its own, and so has the client; a null server that is called in the same way shows
what that client could do at most.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psutil

from re4.benchmarks.common.cores import on_core
from re4.benchmarks.common.steadiness import measure_steadiness
from re4.benchmarks.load_generator.client import INTERRUPTED, ClientSettings, LoadClient
from re4.benchmarks.load_generator.load import ClosedLoad, OpenLoad, Timing
from re4.benchmarks.peers.asking import ask
from re4.benchmarks.peers.system import Material, Setting, System
from re4.benchmarks.peers.truth import NUM_REQUESTS, Truth
from re4.benchmarks.serve.measure import Bench, StoppedError, measure_ceiling
from re4.benchmarks.serve.report import point_facts
from re4.benchmarks.serve.sweep import Knee, find_knee
from re4.common.errors import ServerError

_log = logging.getLogger(__name__)

SATURATING: Final = ClosedLoad(concurrency=64)
LONE: Final = ClosedLoad(concurrency=1)
_FIRST_SHARE: Final = 0.25
"""Of saturation: where a sweep begins."""
_NUM_CONNECTIONS: Final = 8
_MAX_OTHER_CORES: Final = 0.1
"""A run in which others used more of the machine than this is done again."""


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


def choose_effort(system: System, material: Material, truth: Truth, terms: Terms) -> int:
    """The least effort with enough recall; the largest where none has."""
    for effort in system.efforts[:-1]:
        with ExitStack() as stack:
            with on_core(terms.cores[0]):
                running = system.running(material, system.settings[0], effort)
                address = stack.enter_context(running).address
            replies = ask(system.callee(), address, system.payloads(material)[:NUM_REQUESTS])
        recall = truth.recall([system.item_ids(reply) for reply in replies])["mean"]
        if recall >= terms.min_recall:
            return effort
        _log.info(f"{system.title}: recall {recall:.4f} at effort {effort}")
    return system.efforts[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Started:
    """A system that runs at one setting, and whoever measures it."""

    system: System
    setting: Setting
    effort: int
    recall: dict[str, Any]
    bench: Bench

    def facts(self) -> dict[str, Any]:
        """What a report says of it, whatever was measured."""
        return {
            "system": self.system.name,
            "title": self.system.title,
            "setting": self.setting.name,
            "how": self.setting.how,
            "client": self.system.client,
            "effort": self.effort,
            "recall": self.recall,
            "client_ceiling_per_s": self.bench.ceiling_per_s,
        }


@contextmanager
def started(
    system: System,
    setting: Setting,
    effort: int,
    material: Material,
    truth: Truth,
    terms: Terms,
    *,
    max_other_cores: float | None,
) -> Iterator[Started]:
    """Run a system on the server's core, and a client for it on the other one, while the block runs.

    Raises:
        Re4Error: the server or the client did not start.
    """
    payloads, callee = system.payloads(material), system.callee()
    client_settings = ClientSettings(num_channels=_NUM_CONNECTIONS)
    with ExitStack() as stack:
        with on_core(terms.cores[0]):
            server = stack.enter_context(system.running(material, setting, effort))
        replies = ask(callee, server.address, payloads[:NUM_REQUESTS])
        recall = truth.recall([system.item_ids(reply) for reply in replies])
        _log.info(f"{system.title}, {setting.name}: recall {recall['mean']:.4f}")
        reply = sorted(replies, key=len)[len(replies) // 2]
        version = callee.read(reply).version
        ceiling_per_s = measure_ceiling(payloads, reply, client_settings, version=version, callee=callee)
        with on_core(terms.cores[1]):
            client = stack.enter_context(LoadClient(server.address, payloads, client_settings, callee))
        bench = Bench(
            client,
            timing=terms.timing,
            version=version,
            seed=terms.seed,
            ceiling_per_s=ceiling_per_s,
            server_pids=[server.pid],
            check_server=lambda: None if psutil.pid_exists(server.pid) else "the server ended",
            max_other_cores=max_other_cores,
        )
        yield Started(system=system, setting=setting, effort=effort, recall=recall, bench=bench)


def measure(
    system: System, setting: Setting, effort: int, material: Material, truth: Truth, terms: Terms
) -> dict[str, Any]:
    """Everything about one setting; what there is of it where it is interrupted.

    Raises:
        Re4Error: the server or the client did not start.
    """
    load_average, steadiness = os.getloadavg()[0], measure_steadiness()
    running = started(system, setting, effort, material, truth, terms, max_other_cores=_MAX_OTHER_CORES)
    with running as subject, on_core(terms.cores[1]):
        knee, problem = _sweep(subject.bench, terms)
    return {
        **subject.facts(),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": load_average,
        "steadiness_before": steadiness,
        "stopped": problem,
        "knee": knee,
        "points": [point_facts(point) for point in subject.bench.points if point.runs],
    }


def _sweep(bench: Bench, terms: Terms) -> tuple[dict[str, Any] | None, str | None]:
    """The knee, and why measuring ended early where it did."""
    try:
        bench.measure(LONE, num_runs=1, purpose="lone caller")
        saturated = bench.measure(SATURATING, num_runs=1, purpose="saturation").pooled.achieved_per_s
        if not saturated:
            raise ServerError("the server answered none of the calls of its saturation")
        found = find_knee(
            bench,
            first_rate_per_s=_FIRST_SHARE * saturated,
            arrivals="poisson",
            p99_ms=terms.p99_ms,
            num_runs=terms.num_runs,
        )
    except StoppedError as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, INTERRUPTED
    return _knee_facts(found), None


def _knee_facts(knee: Knee) -> dict[str, Any]:
    load = knee.point.load if knee.point else None
    return {
        "rate_per_s": load.rate_per_s if isinstance(load, OpenLoad) else None,
        "reason": knee.reason,
        "is_client_limited": knee.is_client_limited,
    }
