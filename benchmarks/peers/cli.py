"""The verb `re4 bench peers`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from re4.common import console
from re4.common.errors import Re4Error, UsageError


def peers(
    bundles: Annotated[Path, typer.Option(help="Bundle directory; every system serves its live version.")],
    data: Annotated[Path, typer.Option(help="Prepared data set: ask with its test users' histories.")],
    systems: Annotated[
        str, typer.Option(help="Of re4, triton, two-hop, fastapi, with commas between; or all.")
    ] = "all",
    p99_ms: Annotated[
        float, typer.Option(min=0.1, help="The objective: milliseconds that 99 % of the calls may take.")
    ] = 20.0,
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the merged list, that every system must reach.")
    ] = 0.95,
    num_runs: Annotated[int, typer.Option(min=1, help="Runs at each system's sustained rate.")] = 3,
    duration_s: Annotated[float, typer.Option(min=0.1, help="Seconds of each run that count.")] = 5.0,
    warmup_s: Annotated[float, typer.Option(min=0.0, help="Seconds before them that do not.")] = 1.0,
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates to ask for.")] = 100,
    seed: Annotated[int, typer.Option(help="Of arrival times and histories.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder that peers keep built things in.")] = Path(
        "bench-peers-work"
    ),
    out: Annotated[
        Path, typer.Option(help="Folder for the report; keeps what earlier calls measured on the same terms.")
    ] = Path("bench-peers"),
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead of sweeps: so many rounds with all systems up, each saturated and called alone in "
            "turns. Its ratios can be believed on a machine whose speed wanders.",
        ),
    ] = None,
    prepare_only: Annotated[
        bool,
        typer.Option(
            "--prepare-only",
            help="Build and tune what the systems need, which may take long, and measure nothing yet.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Compare this server with others: same machine, vectors, requests and recall, each up to its knee.

    Each server has one core and the client another. `make peers` installs the others; one that cannot be had
    is skipped, with the reason. Systems may be measured in several calls, into one --out.

    Example: re4 bench peers --bundles million/bundles --data million/data

    Example: re4 bench peers --bundles million/bundles --data million/data --systems re4,triton

    Example: re4 bench peers --bundles million/bundles --data million/data --rounds 6
    """
    from re4.benchmarks.common.cores import two_cores
    from re4.benchmarks.load_generator.load import Timing
    from re4.benchmarks.peers.markdown import first_paragraph
    from re4.benchmarks.peers.measure import Terms
    from re4.benchmarks.peers.session import SYSTEMS, Plan, run

    names = [system.name for system in SYSTEMS]
    wanted = names if systems == "all" else systems.split(",")
    for name in wanted:
        if name not in names:
            raise UsageError(f"--systems {name}: there are {', '.join(names)}, or all")
    plan = Plan(
        bundles=bundles,
        data=data,
        systems=[system for system in SYSTEMS if system.name in wanted],
        terms=Terms(
            p99_ms=p99_ms,
            min_recall=recall,
            num_runs=num_runs,
            timing=Timing(warmup_s=warmup_s, duration_s=duration_s, deadline_s=5.0),
            seed=seed,
            cores=two_cores(),
        ),
        num_candidates=num_candidates,
        work=work,
        command=shlex.join(["re4", *sys.argv[1:]]),
        prepare_only=prepare_only,
        num_rounds=rounds,
    )
    report = run(plan, out)
    if prepare_only and report["status"] == "complete":
        console.print_line(f"{', '.join(wanted)}: ready to be measured into {out}")
        return
    if as_json:
        console.print_json(report)
    else:
        _show(report)
        console.print_line(first_paragraph(report))
    if report["status"] != "complete":
        raise Re4Error(f"{report['status']} report, {out / 'report.md'}: {report['status_reason']}")
    console.print_line(f"report: {out / 'report.md'}")


def _show(report: dict[str, Any]) -> None:
    console.table(
        f"sustained within {report['terms']['p99_ms']:g} ms",
        ["system", "setting", "requests/s", "p50, ms", "p99, ms", "lone, ms", "recall"],
        [
            [
                one["title"],
                one["setting"],
                f"{one['sustained_per_s']['mean']:,.0f}",
                *(f"{one[name]:.1f}" for name in ("p50_ms", "p99_ms", "lone_p50_ms")),
                f"{one['recall']:.4f}",
            ]
            for one in report["comparison"]["best"]
        ],
    )
