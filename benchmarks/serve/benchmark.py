"""One benchmark from its options to its report: inspect the server, measure the client, then the server.

The report is written even where measuring ended early, marked as partial.
"""

import functools
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from re4.benchmarks.common.cpu_stability import in_words
from re4.benchmarks.common.machine import describe_idle_machine
from re4.benchmarks.common.report import Content, command_line, now_utc, write_report
from re4.benchmarks.load_generator.client import INTERRUPTED, LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, OpenLoad, Timing
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.server import describe_bundle, running_server, sample_reply, server_info
from re4.benchmarks.load_generator.transport import GrpcTransport
from re4.benchmarks.serve.markdown import render_markdown
from re4.benchmarks.serve.options import ServeOptions
from re4.benchmarks.serve.picture import draw
from re4.benchmarks.serve.recall import measure_recall
from re4.benchmarks.serve.report import points_facts, ratios
from re4.benchmarks.serve.runner import LoadRunner, StoppedError, measure_ceiling, measure_pairs
from re4.benchmarks.serve.sweep import find_knee
from re4.bundle.verify import read_manifest
from re4.common.errors import Re4Error, UsageError
from re4.serving.client.connection import PLAIN, Connection

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
JSON_FILE: Final = "report.json"
MARKDOWN_FILE: Final = "report.md"
PICTURE_FILE: Final = "report.png"
_SAME_SERVER: Final = ("version", "server_version", "num_processes")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Server:
    """A server under test."""

    address: str
    pid: int | None
    bundles: Path | None
    is_ours: bool
    """It was started here."""
    info: dict[str, Any]
    connection: Connection

    def facts(self, runner: LoadRunner) -> dict[str, Any]:
        """Return the server's part of a report, without its recall."""
        return {
            "server": {"address": self.address, "started_here": self.is_ours, "info": self.info},
            "bundle": self.of_bundle(lambda path: describe_bundle(read_manifest(path))),
            "points": points_facts(runner),
        }

    def of_bundle(self, found: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
        """Return what is found in the version's folder, or the problem; None without a bundle."""
        if self.bundles is None:
            return None
        try:
            return found(self.bundles / str(self.info["version"]))
        except Re4Error as error:  # the latencies are measured by now, and worth writing
            return {"problem": str(error)}
        except KeyboardInterrupt:
            return {"problem": INTERRUPTED}

    def change(self) -> str | None:
        """Return what has changed of the server since the beginning."""
        try:
            now = server_info(self.address, self.connection)
        except Re4Error as error:
            return f"the server does not answer any more: {error}"
        changes = [
            f"{name} from {self.info[name]} to {now[name]}"
            for name in _SAME_SERVER
            if now[name] != self.info[name]
        ]
        return f"the server changed in the middle: {', '.join(changes)}" if changes else None


def _open_server(
    stack: ExitStack, options: ServeOptions, connection: Connection, *, is_second: bool = False
) -> _Server:
    """Return a server under test, started in the stack where no address was given."""
    address, bundles, pid = options.address, options.bundles, options.server_pid
    if is_second:
        address, bundles, pid = options.against_address, options.against_bundles, None
    is_ours = address is None
    if address is None:
        if bundles is None:
            raise UsageError("name a running server, --address HOST:PORT, or --bundles DIR to start one")
        address, pid = stack.enter_context(running_server(bundles, num_processes=options.num_processes))
    info = server_info(address, connection)
    _log.info(f"{address}: version {info['version']}, {info['num_items']:,} items")
    return _Server(
        address=address, pid=pid, bundles=bundles, is_ours=is_ours, info=info, connection=connection
    )


def run(options: ServeOptions, connection: Connection = PLAIN) -> dict[str, Any]:
    """Measure, write the report's files, and return the report.

    Its `status` is `complete`, `client-limited` or `partial`.
    """
    machine = describe_idle_machine()
    _log.info(f"this machine's CPUs: {in_words(machine['steadiness'])}")
    timing = Timing(warmup_s=options.warmup_s, duration_s=options.duration_s, deadline_s=options.deadline_s)
    client = ClientSettings(num_workers=options.num_workers, num_channels=options.num_channels)
    transport = GrpcTransport(connection=connection)
    with ExitStack() as stack:
        first = _open_server(stack, options, connection)
        histories = choose_histories(
            first.info, data=options.data, ids=options.ids, bundles=options.bundles, seed=options.seed
        )
        payloads = histories.payloads(
            num_candidates=options.num_candidates, exclude_history=options.exclude_history
        )
        reply = sample_reply(first.address, payloads, connection)
        ceiling_per_s = measure_ceiling(payloads, reply, client, version=first.info["version"])
        _log.info(f"{histories.source}; this client does {ceiling_per_s:,.0f} calls/s against a null server")
        servers = [first]
        if options.is_comparison:
            servers.append(_open_server(stack, options, connection, is_second=True))
        runners = [
            LoadRunner(
                client=stack.enter_context(LoadClient(server.address, payloads, client, transport)),
                timing=timing,
                version=server.info["version"],
                seed=options.seed,
                ceiling_per_s=ceiling_per_s,
                server_pids=[server.pid] if server.pid else [],
                check_server=server.change,
            )
            for server in servers
        ]
        knee, problem = _measure(options, runners)
        facts = []
        for server, runner in zip(servers, runners, strict=True):
            recall = functools.partial(
                measure_recall,
                server.address,
                connection,
                histories.ids,
                num_candidates=options.num_candidates,
                exclude_history=options.exclude_history,
            )
            facts.append(server.facts(runner) | {"recall": None if problem else server.of_bundle(recall)})
    if len(facts) > 1:
        first_points = [runner.points[0] for runner in runners if runner.points]
        facts[1]["ratios"] = ratios(*first_points) if len(first_points) > 1 else {}
    if knee is None:
        points = [point for each in facts for point in each["points"]]
        limits = [point["client_limit"] for point in points if point["client_limit"]]
    else:  # no limited point is a sweep's knee, but the client's own ceiling may have ended the search
        limits = [knee["reason"]] if knee["is_client_limited"] else []
    report = {
        "schema_version": SCHEMA_VERSION,
        "status": "partial" if problem else "client-limited" if limits else "complete",
        "status_reason": problem or (limits[0] if limits else None),
        "created_at": now_utc(),
        "command": command_line(),
        "machine": machine,
        **facts[0],
        "requests": {
            "source": histories.source,
            "num_different": len(payloads),
            "num_candidates": options.num_candidates,
            "exclude_history": options.exclude_history,
        },
        "timing": asdict(timing),
        "client": asdict(client)
        | {"ceiling_per_s": ceiling_per_s, "max_rate_per_s": runners[0].max_rate_per_s},
        "knee": knee,
        "against": facts[1] if len(facts) > 1 else None,
        "picture": PICTURE_FILE if any(point["num_answered"] for point in facts[0]["points"]) else None,
    }
    files: dict[str, Content] = {JSON_FILE: report, MARKDOWN_FILE: render_markdown(report)}
    if report["picture"]:
        files[PICTURE_FILE] = lambda path: draw(report, path)
    write_report(options.out, files)
    return report


def _measure(options: ServeOptions, runners: list[LoadRunner]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the knee of a sweep, and why measuring ended early where it did."""
    load, runner = options.load, runners[0]
    if isinstance(load, OpenLoad) and load.rate_per_s > runner.max_rate_per_s:
        raise UsageError(
            f"--rate {load.rate_per_s:g}: this client does {runner.ceiling_per_s:,.0f} calls/s against a "
            f"null server and offers at most {runner.max_rate_per_s:,.0f}/s, so that it does not measure "
            "itself. Give a lower rate, more --num-workers on free cores, or another machine for the client"
        )
    try:
        if options.sweep and isinstance(load, OpenLoad):
            knee = find_knee(runner, load, p99_ms=options.p99_ms, num_runs=options.num_runs)
            label = knee.point.load.label if knee.point else None
            return {"label": label, "p99_objective_ms": options.p99_ms, **knee.facts()}, None
        if len(runners) > 1:
            measure_pairs(runners[0], runners[1], load, num_pairs=options.num_runs)
        else:
            runner.measure(load, num_runs=options.num_runs)
    except StoppedError as error:
        return None, str(error)
    except KeyboardInterrupt:
        return None, INTERRUPTED
    return None, None
