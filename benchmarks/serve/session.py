"""One benchmark from its options to its report: look at the server, measure the client, then the server.

What was measured is written whatever happens afterwards, and marked where it is not what was asked for.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.machine import describe_machine_alone
from re4.benchmarks.common.steadiness import in_words
from re4.benchmarks.load_generator.client import INTERRUPTED, ClientSettings, LoadClient
from re4.benchmarks.load_generator.load import Load, OpenLoad, Timing
from re4.benchmarks.load_generator.requests import Histories, choose_histories
from re4.benchmarks.load_generator.target import running_server, sample_reply, server_info
from re4.benchmarks.load_generator.transport import GrpcCallee
from re4.benchmarks.serve.markdown import render_markdown
from re4.benchmarks.serve.measure import Bench, StoppedError, measure_ceiling
from re4.benchmarks.serve.pairs import measure_pairs, ratios
from re4.benchmarks.serve.picture import draw
from re4.benchmarks.serve.recall import measure_recall
from re4.benchmarks.serve.report import SCHEMA_VERSION, point_facts
from re4.benchmarks.serve.sweep import find_knee
from re4.bundle.verify import read_manifest
from re4.common.errors import Re4Error, UsageError
from re4.common.files import replacing, write_json
from re4.serving.client.connection import Connection

_log = logging.getLogger(__name__)

JSON_FILE: Final = "report.json"
MARKDOWN_FILE: Final = "report.md"
PICTURE_FILE: Final = "report.png"
_SAME_SERVER: Final = ("version", "server_version", "num_processes")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Find the highest rate that meets an objective, from this rate on."""

    first: OpenLoad
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Other:
    """A second server, to compare with in pairs: one that runs, or one to start on a bundle directory."""

    address: str | None
    bundles: Path | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and on what."""

    address: str | None
    """The server; None to start one on `bundles`."""
    connection: Connection = field(default_factory=Connection)
    """TLS and token, for a server at `address`."""
    bundles: Path | None
    """Bundle directory: for a server of our own, for ids and for recall."""
    data: Path | None
    """Prepared data set with real histories."""
    ids: Path | None
    """File of item ids to generate histories from."""
    work: Load | Sweep
    num_runs: int
    timing: Timing
    client: ClientSettings
    num_candidates: int
    exclude_history: bool
    num_processes: int
    """Of a server of our own."""
    server_pid: int | None
    """Of a server at `address` on this machine."""
    seed: int
    command: str
    """What the person typed."""
    against: Other | None = None
    """Compare with this one, in as many pairs as there are runs. Not for a sweep."""


@dataclass(kw_only=True, eq=False)
class _Subject:
    """A server under test, and whoever measures it."""

    address: str
    info: dict[str, Any]
    bundles: Path | None
    is_ours: bool
    """It was started here."""
    bench: Bench

    def facts(self, plan: Plan, recall: dict[str, Any] | None) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "server": {"address": self.address, "started_here": self.is_ours, "info": self.info},
            "bundle": _bundle(self.bundles, self.info),
            "recall": recall,
            "points": [point_facts(point) for point in self.bench.points if point.runs],
        }


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Measure and write the report's files into `out`; gives the report.

    Its `status` is `complete`, `client-limited` or `partial`.

    Raises:
        UsageError: a rate that the client cannot offer.
        Re4Error: nothing could be measured.
    """
    machine = describe_machine_alone()
    _log.info(f"this machine alone: {in_words(machine['steadiness'])}")
    callee = GrpcCallee(connection=plan.connection)
    with ExitStack() as stack:
        address, pid = stack.enter_context(_server(plan, plan.address, plan.bundles))
        info = server_info(address, plan.connection)
        histories = choose_histories(info, data=plan.data, ids=plan.ids, bundles=plan.bundles, seed=plan.seed)
        payloads = histories.payloads(
            num_candidates=plan.num_candidates, exclude_history=plan.exclude_history
        )
        reply = sample_reply(address, payloads, plan.connection)
        _log.info(f"{address}: version {info['version']}, {info['num_items']:,} items; {histories.source}")
        ceiling_per_s = measure_ceiling(payloads, reply, plan.client, version=info["version"])
        _log.info(f"this client does {ceiling_per_s:,.0f} calls/s against a null server")

        def subject(
            address: str, pid: int | None, info: dict[str, Any], bundles: Path | None, *, is_ours: bool
        ) -> _Subject:
            client = stack.enter_context(LoadClient(address, payloads, plan.client, callee))
            bench = Bench(
                client,
                timing=plan.timing,
                version=info["version"],
                seed=plan.seed,
                ceiling_per_s=ceiling_per_s,
                server_pids=[pid] if pid else [],
                check_server=lambda: _difference(address, info, plan.connection),
            )
            return _Subject(address=address, info=info, bundles=bundles, is_ours=is_ours, bench=bench)

        first = subject(address, pid, info, plan.bundles, is_ours=plan.address is None)
        second = None
        if plan.against is not None:
            its = plan.against
            address, pid = stack.enter_context(_server(plan, its.address, its.bundles))
            info = server_info(address, plan.connection)
            _log.info(f"against {address}: version {info['version']}, {info['num_items']:,} items")
            second = subject(address, pid, info, its.bundles, is_ours=its.address is None)
        knee, problem = _work(plan, first.bench, second.bench if second else None)
        recalls = [
            None if problem or each is None else _recall(plan, each, histories) for each in (first, second)
        ]
    facts = first.facts(plan, recalls[0])
    points = first.bench.points + (second.bench.points if second else [])
    if knee is None:
        limits = [point.limit for point in points if point.runs and point.limit]
    else:  # a sweep takes no limited point for its knee, but may have found no more than the client's own end
        limits = [knee["reason"]] if knee["is_client_limited"] else []
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if problem else "client-limited" if limits else "complete",
        "status_reason": problem or (limits[0] if limits else None),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": plan.command,
        "machine": machine,
        **facts,
        "requests": {
            "source": histories.source,
            "num_different": len(payloads),
            "num_candidates": plan.num_candidates,
            "exclude_history": plan.exclude_history,
        },
        "timing": asdict(plan.timing),
        "client": asdict(plan.client)
        | {"ceiling_per_s": ceiling_per_s, "max_rate_per_s": first.bench.max_rate_per_s},
        "knee": knee,
        "against": second
        and second.facts(plan, recalls[1])
        | {
            "ratios": ratios(first.bench.points[0], second.bench.points[0])
            if first.bench.points and second.bench.points
            else {}
        },
        "picture": PICTURE_FILE if any(point["num_answered"] for point in facts["points"]) else None,
    }
    _write(report, out)
    return report


def _work(plan: Plan, bench: Bench, other: Bench | None) -> tuple[dict[str, Any] | None, str | None]:
    """Measure; the knee where there is one, and why it ended early where it did."""
    work = plan.work
    rate = work.first.rate_per_s if isinstance(work, Sweep) else getattr(work, "rate_per_s", 0.0)
    if rate > bench.max_rate_per_s:
        raise UsageError(
            f"--rate {rate:g}: this client does {bench.ceiling_per_s:,.0f} calls/s against a null server and "
            f"is asked for at most {bench.max_rate_per_s:,.0f}/s, so that it does not measure itself. "
            "Ask for less, give it more --num-workers on free cores, or run it on another machine"
        )
    try:
        if isinstance(work, Sweep):
            found = find_knee(
                bench,
                first_rate_per_s=work.first.rate_per_s,
                arrivals=work.first.arrivals,
                p99_ms=work.p99_ms,
                num_runs=plan.num_runs,
            )
            load = found.point.load if found.point else None
            return {
                "label": load.label if load else None,
                "rate_per_s": load.rate_per_s if isinstance(load, OpenLoad) else None,
                "p99_objective_ms": work.p99_ms,
                "reason": found.reason,
                "is_client_limited": found.is_client_limited,
            }, None
        if other is None:
            bench.measure(work, num_runs=plan.num_runs)
        else:
            measure_pairs(bench, other, work, num_pairs=plan.num_runs)
    except StoppedError as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, INTERRUPTED
    return None, None


@contextmanager
def _server(plan: Plan, address: str | None, bundles: Path | None) -> Iterator[tuple[str, int | None]]:
    """Address and process id of a server under test, started here where none was named."""
    if address is not None:
        yield address, plan.server_pid if address == plan.address else None
    elif bundles is not None:
        with running_server(bundles, num_processes=plan.num_processes) as server:
            yield server
    else:
        raise UsageError("name a running server, --address HOST:PORT, or --bundles DIR to start one")


def _recall(plan: Plan, subject: _Subject, histories: Histories) -> dict[str, Any] | None:
    if subject.bundles is None:
        return None
    try:
        return measure_recall(
            subject.address,
            plan.connection,
            subject.bundles / str(subject.info["version"]),
            histories.ids,
            num_candidates=plan.num_candidates,
            exclude_history=plan.exclude_history,
        )
    except Re4Error as error:  # the latencies are measured by now, and worth writing
        return {"problem": str(error)}
    except KeyboardInterrupt:
        return {"problem": INTERRUPTED}


def _bundle(bundles: Path | None, info: dict[str, Any]) -> dict[str, Any] | None:
    """Model, index and items of the version's manifest, where its bundle was given."""
    if bundles is None:
        return None
    try:
        manifest = read_manifest(bundles / str(info["version"]))
    except Re4Error as error:
        return {"problem": str(error)}
    return manifest.model_dump(mode="json", include={"version", "created_at", "model", "index", "items"})


def _difference(address: str, info: dict[str, Any], connection: Connection) -> str | None:
    """What has changed of the server since the beginning."""
    try:
        now = server_info(address, connection)
    except Re4Error as error:
        return f"the server does not answer any more: {error}"
    changed = [name for name in _SAME_SERVER if now[name] != info[name]]
    return (
        "the server changed in the middle: "
        + ", ".join(f"{name} from {info[name]} to {now[name]}" for name in changed)
        if changed
        else None
    )


def _write(report: dict[str, Any], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / JSON_FILE, report)
        with replacing(out / MARKDOWN_FILE) as part:
            part.write_text(render_markdown(report), encoding="utf-8")
        if report["picture"]:
            with replacing(out / PICTURE_FILE) as part:
                draw(report, part)
    except OSError as error:
        raise Re4Error(f"the report cannot be written to {out}: {error}") from None
