"""The verb `re4 bench overload`."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from re4.common import console
from re4.common.errors import Re4Error, UsageError


def overload(
    bundles: Annotated[Path, typer.Option(help="Bundle directory; a server is started on it.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set: ask with its test users' real histories.")
    ] = None,
    factor: Annotated[float, typer.Option(help="Offered load, as a multiple of the measured peak.")] = 3.0,
    seconds: Annotated[float, typer.Option(help="How long the load lasts.")] = 60.0,
    peak_seconds: Annotated[
        float, typer.Option(help="How long the peak is measured, before and after.")
    ] = 5.0,
    deadline_s: Annotated[float, typer.Option(help="Seconds that every caller waits for an answer.")] = 2.0,
    num_candidates: Annotated[int, typer.Option(help="Candidates to ask for.")] = 100,
    server_options: Annotated[str, typer.Option(help="Further words for re4 serve, in one string.")] = "",
    seed: Annotated[int, typer.Option(help="Of arrival times and histories.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for overload.json.")] = Path("bench-overload"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Offer a server several times what it can answer, and see what it still answers and how it recovers.

    Server and client get a core each. Exits with 0 only where goodput keeps 85 % of the peak and calls are
    normal again within 2 seconds.

    Example: re4 bench overload --bundles demo/bundles --data demo/ml-100k
    """
    for option, value in {
        "--factor": factor,
        "--seconds": seconds,
        "--peak-seconds": peak_seconds,
        "--deadline-s": deadline_s,
        "--num-candidates": num_candidates,
    }.items():
        if not value > 0:
            raise UsageError(f"{option} {value:g}: must be greater than 0")
    from re4.benchmarks.load_generator.own_server import Subject
    from re4.benchmarks.overload.run import JSON_FILE, OverloadPlan, missed
    from re4.benchmarks.overload.run import overload as run

    plan = OverloadPlan(
        subject=Subject(
            bundles=bundles,
            data=data,
            num_candidates=num_candidates,
            seed=seed,
            server_options=tuple(shlex.split(server_options)),
        ),
        factor=factor,
        seconds=seconds,
        peak_seconds=peak_seconds,
        deadline_s=deadline_s,
    )
    report = run(plan, out)
    if as_json:
        console.print_json(report)
    else:
        _show(report)
    if problems := missed(report):
        raise Re4Error(f"{'; '.join(problems)}: {out / JSON_FILE}")
    console.print_line(f"report: {out / JSON_FILE}")


def _show(report: dict[str, Any]) -> None:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:,.1f}"

    accepted = report["accepted_ms"]
    console.table(
        f"{report['factor']:g} times the peak for {report['seconds']:g} s",
        ["", ""],
        [
            ["peak/s before, after", ", ".join(cell(value) for value in report["peak_per_s"].values())],
            ["offered/s", cell(report["offered_per_s"])],
            ["answered/s", f"{cell(report['goodput_per_s'])} ({report['goodput_ratio']:.1%} of the peak)"],
            ["accepted ms", ", ".join(f"{name} {cell(value)}" for name, value in accepted.items())],
            ["turned away", ", ".join(f"{code} {count:,}" for code, count in report["failures"].items())],
            ["back to normal", "never" if report["recovery_s"] is None else f"{report['recovery_s']:.2f} s"],
            ["client's own lag, p99 ms", cell(report["client_lag_p99_ms"])],
        ],
    )
