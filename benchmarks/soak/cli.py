"""The verb `re4 bench soak`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from re4.common import console
from re4.common.errors import Re4Error, UsageError


def soak(
    bundles: Annotated[Path, typer.Option(help="Bundle directory; a server is started on it.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set: ask with its test users' real histories.")
    ] = None,
    minutes: Annotated[int, typer.Option(help="How long.")] = 30,
    share: Annotated[float, typer.Option(help="Load, as a share of the saturated rate.")] = 0.7,
    num_processes: Annotated[int, typer.Option(help="Processes of the server.")] = 1,
    num_workers: Annotated[int, typer.Option(help="Processes of the client.")] = 1,
    num_candidates: Annotated[int, typer.Option(help="Candidates to ask for.")] = 50,
    seed: Annotated[int, typer.Option(help="Of arrival times and histories.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for soak.json.")] = Path("bench-soak"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Keep a server busy for half an hour and see whether it grows slower or larger.

    Saturation is found first, with 64 callers that wait for their answers. Then calls come on schedule at a
    share of that rate, and each minute's latencies, memory, open files and threads are kept. Ctrl-C ends it
    early.

    Example: re4 bench soak --bundles demo/bundles --data demo/ml-100k --minutes 30
    """
    if minutes < 1:
        raise UsageError(f"--minutes {minutes}: must be at least 1")
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g}: must be between 0 and 1")
    from re4.benchmarks.load_generator.own_server import Subject
    from re4.benchmarks.soak.run import JSON_FILE, SoakPlan
    from re4.benchmarks.soak.run import soak as run

    plan = SoakPlan(
        subject=Subject(
            bundles=bundles,
            data=data,
            num_candidates=num_candidates,
            seed=seed,
            num_processes=num_processes,
            num_workers=num_workers,
        ),
        num_minutes=minutes,
        share=share,
    )
    report = run(plan, out)
    if as_json:
        console.print_json(report)
    else:
        _show(report)
    if report["status"] != "complete":
        raise Re4Error(f"{report['status']} soak, {out / JSON_FILE}: {report['status_reason']}")
    console.print_line(f"report: {out / JSON_FILE}")


def _show(report: dict[str, Any]) -> None:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    console.table(
        f"{report['rate_per_s']:,.0f} calls/s, {report['share']:.0%} of {report['saturated_per_s']:,.0f}/s",
        [
            "minute",
            "calls",
            "failed",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "RSS MiB",
            "PSS MiB",
            "files",
            "threads",
        ],
        [
            [
                str(minute["number"]),
                f"{minute['num_calls']:,}",
                f"{sum(minute['failures'].values()):,}",
                *(cell(minute[name]) for name in ("p50_ms", "p99_ms", "p999_ms")),
                *(cell(minute[name] / 2**20) for name in ("rss_bytes", "pss_bytes")),
                str(minute["num_open_files"]),
                str(minute["num_threads"]),
            ]
            for minute in report["minutes"]
        ],
    )
    console.table(
        "drift per hour, from the second minute on",
        ["p50 ms", "p99 ms", "RSS MiB", "PSS MiB", "open files"],
        [[cell(value) for value in report["drift"].values()]],
    )
