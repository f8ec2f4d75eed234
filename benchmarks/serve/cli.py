"""The verb `re4 bench serve`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from re4.common import console
from re4.common.errors import Re4Error, UsageError
from re4.serving.client.options import Ca, Certificate, Key, Tls, TokenFile


def serve(
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running server.")] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            help="Bundle directory. Without --address, a server is started on it. Gives ids to ask with, and "
            "the exact search that recall is measured against."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set: ask with its test users' real histories.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="File with one item id a line: ask with histories drawn from them.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: so many calls per second, however slow the answers. With --sweep: the first."
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Find the highest rate that meets --p99-ms, from --rate (or 50) on."),
    ] = False,
    p99_ms: Annotated[
        float, typer.Option(help="The objective of --sweep: milliseconds that 99 % of the calls may take.")
    ] = 20.0,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Closed loop instead: so many callers that wait for their answers. Hides a server's pauses."
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="How calls arrive: poisson (independent users) or constant (even distances).")
    ] = "poisson",
    num_runs: Annotated[int, typer.Option(help="Runs at each reported load; intervals need at least 3.")] = 3,
    duration_s: Annotated[float, typer.Option(help="Seconds of each run that count.")] = 10.0,
    warmup_s: Annotated[float, typer.Option(help="Seconds before them that do not.")] = 2.0,
    deadline_s: Annotated[
        float, typer.Option(help="A call not answered so many seconds after it was due has failed.")
    ] = 5.0,
    num_candidates: Annotated[int, typer.Option(help="Candidates to ask for.")] = 50,
    exclude_history: Annotated[
        bool, typer.Option("--exclude-history/--keep-history", help="Leave the history's items out.")
    ] = False,
    num_workers: Annotated[int, typer.Option(help="Processes of the client.")] = 1,
    num_channels: Annotated[
        int, typer.Option(help="Connections of each; the kernel deals connections to the server's processes.")
    ] = 8,
    num_processes: Annotated[int, typer.Option(help="Processes of the server that --bundles starts.")] = 1,
    against_address: Annotated[
        str | None, typer.Option(help="Compare with the server at HOST:PORT: the same load in turns.")
    ] = None,
    against_bundles: Annotated[
        Path | None, typer.Option(help="Compare with a server started on this bundle directory.")
    ] = None,
    server_pid: Annotated[
        int | None, typer.Option(help="Process id of the server at --address, to measure what it uses.")
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
    seed: Annotated[int, typer.Option(help="Of arrival times and histories.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.md and report.png.")] = Path(
        "bench-serve"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Measure a server's latency under load, from the times at which calls were due.

    The client first measures itself against a server that does nothing, and refuses a rate that it could not
    offer. Failed calls count as slower than any answer. Ctrl-C writes what there is, marked as partial.

    Example: re4 bench serve --bundles demo/bundles --data demo/ml-100k --rate 100

    Example: re4 bench serve --address 127.0.0.1:8700 --ids ids.txt --sweep --p99-ms 20

    Example: re4 bench serve --bundles new --against-bundles old --data demo/ml-100k --rate 100 --num-runs 10
    """
    _check(rate=rate, sweep=sweep, concurrency=concurrency)
    against = against_address is not None or against_bundles is not None
    if against and (sweep or (against_address is not None and against_bundles is not None)):
        raise UsageError("--against-address or --against-bundles, and with --rate or --concurrency only")
    _check_positive(
        **{
            "--p99-ms": p99_ms,
            "--num-runs": num_runs,
            "--duration-s": duration_s,
            "--deadline-s": deadline_s,
            "--num-candidates": num_candidates,
            "--num-workers": num_workers,
            "--num-channels": num_channels,
            "--num-processes": num_processes,
        },
        **({} if rate is None else {"--rate": rate}),
        **({} if concurrency is None else {"--concurrency": concurrency}),
    )
    if warmup_s < 0:
        raise UsageError(f"--warmup-s {warmup_s:g}: 0 or more")
    from re4.benchmarks.load_generator.client import ClientSettings
    from re4.benchmarks.load_generator.load import ClosedLoad, Load, OpenLoad, Timing
    from re4.benchmarks.serve.session import Other, Plan, Sweep, run
    from re4.serving.client.connection import Connection

    work: Load | Sweep
    if concurrency is not None:
        work = ClosedLoad(concurrency=concurrency)
    else:
        load = OpenLoad(rate_per_s=50.0 if rate is None else rate, arrivals=_arrivals(arrivals))
        work = Sweep(first=load, p99_ms=p99_ms) if sweep else load
    plan = Plan(
        address=address,
        connection=Connection.read(tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file),
        bundles=bundles,
        data=data,
        ids=ids,
        work=work,
        num_runs=num_runs,
        timing=Timing(warmup_s=warmup_s, duration_s=duration_s, deadline_s=deadline_s),
        client=ClientSettings(num_workers=num_workers, num_channels=num_channels),
        num_candidates=num_candidates,
        exclude_history=exclude_history,
        num_processes=num_processes,
        server_pid=server_pid,
        seed=seed,
        command=shlex.join(["re4", *sys.argv[1:]]),
        against=Other(address=against_address, bundles=against_bundles) if against else None,
    )
    report = run(plan, out)
    if as_json:
        console.print_json(report)
    else:
        _show(report)
    _end(report, out)


def _check(*, rate: float | None, sweep: bool, concurrency: int | None) -> None:
    if concurrency is not None and (sweep or rate is not None):
        raise UsageError("--concurrency is a closed loop: it goes with neither --rate nor --sweep")
    if concurrency is None and rate is None and not sweep:
        raise UsageError("say what to measure: --rate CALLS_PER_SECOND, --sweep, or --concurrency CALLERS")


def _check_positive(**values: float) -> None:
    for option, value in values.items():
        if not value > 0:
            raise UsageError(f"{option} {value:g}: must be greater than 0")


def _arrivals(text: str) -> Literal["poisson", "constant"]:
    if text == "poisson":
        return "poisson"
    if text == "constant":
        return "constant"
    raise UsageError(f"--arrivals {text}: poisson or constant")


def _show(report: dict[str, Any]) -> None:
    def cell(point: dict[str, Any], name: str) -> str:
        value = point["latency_ms"][name]["pooled"]
        return "failed" if value is None else f"{value:.1f}"

    console.table(
        f"latency in ms, {report['server']['info']['version']} (~ limited by the client)",
        ["load", "runs", "answers/s", "p50", "p90", "p99", "p99.9", "calls", "failed"],
        [
            [
                ("~" if point["client_limit"] else "") + f"{point['label']} {point['loop']}",
                str(point["num_runs"]),
                f"{point['achieved_per_s']['mean']:,.1f}",
                *(cell(point, name) for name in ("p50", "p90", "p99", "p99.9")),
                f"{point['num_calls']:,}",
                f"{sum(point['failures'].values()):,}",
            ]
            for point in report["points"]
        ],
    )
    if report["against"] is not None:
        _show_ratios(report["against"])
    if report["knee"] is not None:
        console.print_line(f"knee: {report['knee']['label'] or 'none'} ({report['knee']['reason']})")
    if report["recall"] is not None:
        recall = report["recall"]
        console.print_line(
            f"recall against exact search: {recall['mean']:.4f}"
            if "mean" in recall
            else f"recall was not measured: {recall['problem']}"
        )


def _show_ratios(against: dict[str, Any]) -> None:
    def cell(found: dict[str, float | None] | None, key: str) -> str:
        value = found and found[key]
        return "–" if value is None else f"{value:.3f}"

    console.table(
        f"{against['server']['info']['version']} at {against['server']['address']}, as multiples",
        ["figure", "mean", "from", "to (95 %)"],
        [
            [name, *(cell(found, key) for key in ("mean", "low", "high"))]
            for name, found in against["ratios"].items()
        ],
    )


def _end(report: dict[str, Any], out: Path) -> None:
    """Say where the report is; end as failed where it is not what was asked for."""
    if report["status"] == "complete":
        console.print_line(f"report: {out / 'report.md'}")
        return
    raise Re4Error(f"{report['status']} report, {out / 'report.md'}: {report['status_reason']}")
