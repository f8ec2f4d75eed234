"""The verb `re4 bench overhead`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from re4.common import console


def overhead(
    bundles: Annotated[Path, typer.Option(help="Bundle directory; its live version is served.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set with real histories; otherwise they are drawn.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another bundle directory: compare the two servers, in pairs.")
    ] = None,
    num_rounds: Annotated[int, typer.Option(min=1, help="Rounds; every figure is the median over them.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each of the seven parts of a round.")] = 3.0,
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates to ask for.")] = 100,
    device: Annotated[str, typer.Option(help="As for re4 serve: cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the histories.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.md.")] = Path("bench-overhead"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Answer with the report as one JSON object.")
    ] = False,
) -> None:
    """Measure what serving adds to the work itself: encode, search and merge, and an empty call.

    A server, a null server (same request, same reply, no work) and the bare pipeline take turns on one core;
    their caller has another. With --against, two servers take turns instead, and the ratio is reported.

    Example: re4 bench overhead --bundles demo/bundles --data demo/ml-100k

    Example: re4 bench overhead --bundles with-flows/bundles --against without/bundles --data demo/ml-100k
    """
    from re4.benchmarks.overhead.session import Plan, run

    report = run(
        Plan(
            bundles=bundles,
            data=data,
            against=against,
            num_rounds=num_rounds,
            seconds=seconds,
            num_candidates=num_candidates,
            device=device,
            seed=seed,
            command=shlex.join(["re4", *sys.argv[1:]]),
        ),
        out,
    )
    if as_json:
        console.print_json(report)
        return
    console.table(
        "shares and multiples" if report["figures"] else "ratios",
        ["figure", "median", "lowest", "highest"],
        [
            [name, *(f"{found[key]:.3f}" for key in ("median", "low", "high"))]
            for name, found in (report["figures"] or report["ratios"]).items()
        ],
    )
    console.print_line(f"report: {out / 'report.md'}")
