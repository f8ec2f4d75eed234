"""The subcommand `re4 bench live-items`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from re4.benchmarks.common.options import BUNDLES, AsJson, finish
from re4.common import console
from re4.serving.host.threads import COMPUTE_ENVIRONMENT


def live_items(
    bundles: Annotated[Path, typer.Option(help=BUNDLES + " Its versions are linked, not changed.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("bench-live-items"),
    num_items: Annotated[
        list[int] | None,
        typer.Option(help="Number of live items to search beside the version; may be repeated."),
    ] = None,
    num_changes: Annotated[int, typer.Option(help="Changes whose lag is measured.", min=10)] = 200,
    updates_per_s: Annotated[float, typer.Option(help="Changed items a second under load.", min=1)] = 500,
    events_per_s: Annotated[float, typer.Option(help="Recorded events a second under load.", min=1)] = 5_000,
    rate: Annotated[float, typer.Option(help="Retrieve calls a second under load.", min=1)] = 50.0,
    seconds: Annotated[float, typer.Option(help="Length of each of the windows under load.", min=1)] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure live items: lag on two servers, latency and recall with many of them, latency under updates.

    The lag is from the reply of UpsertItems until a server's Info shows the change. Latency and recall with
    many live items are those of the pipeline in this process, in CPU time, in turns. Under updates, windows
    of Retrieve calls with and without updates take turns.

    Example: re4 bench live-items --bundles demo/bundles --num-items 10000 --num-items 100000
    """
    os.environ.update(COMPUTE_ENVIRONMENT)  # as in a worker, and before NumPy is imported
    from re4.benchmarks.live_items.benchmark import REPORT_FILE, measure

    report = measure(
        bundles,
        out,
        nums_items=num_items or [10_000, 100_000],
        num_changes=num_changes,
        updates_per_s=updates_per_s,
        events_per_s=events_per_s,
        rate=rate,
        seconds=seconds,
    )
    finish(report, _show, out / REPORT_FILE, as_json=as_json)


_COLUMNS = ("num_items", "num_users", "p50_ms", "p99_ms", "p99_over_none", "recall", "recall_of_live_items")


def _show(report: dict[str, Any]) -> None:
    lag = report["lag_ms"]
    console.print_line(f"acknowledged to findable on both servers: p50 {lag['p50']} ms, p99 {lag['p99']} ms")
    console.table(
        "pipeline with live items, CPU time",
        ["live items", "users", "p50 ms", "p99 ms", "p99 over none", "recall", "recall of live items"],
        [[str(point[name]) for name in _COLUMNS] for point in report["pipeline"]],
    )
    for load in (report["under_updates"], report["under_updates_and_events"]):
        console.print_line(
            f"p99 of Retrieve: {load['p99_ms_without']} ms, with {load['items_per_s']} changed items and "
            f"{load['events_per_s']} events a second {load['p99_ms_with']} ms: {load['ratio']} times"
        )
