"""The verb `re4 rebuild`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from re4.common.console import print_json, print_line, table
from re4.exporting.index.devices import Device

if TYPE_CHECKING:
    from re4.exporting.rebuild.report import JobReport

_FROM = "Where the vectors come from"
_CATALOGUE = "What is live"
_INDEX = "Index"
_GATES = "Gates: what must hold before anything is published"
_SCHEDULERS = "For schedulers"


def rebuild(
    bundles: Annotated[
        Path, typer.Option(help="Bundle directory to publish into; servers on it follow by themselves.")
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            help="A run's folder, or a folder of runs, of which the newest finished one is taken.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Item vectors made elsewhere: .npy of float32 [items, width] with --ids, or one parquet "
            "file with both.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="Item ids of the rows of --vectors: .npy of integers or text.",
            show_default=False,
            rich_help_panel=_FROM,
        ),
    ] = None,
    id_column: Annotated[
        str, typer.Option(help="Column of ids in a parquet file.", rich_help_panel=_FROM)
    ] = "item_id",
    vector_column: Annotated[
        str,
        typer.Option(help="Column of vectors (lists of numbers) in a parquet file.", rich_help_panel=_FROM),
    ] = "vector",
    encoder_from: Annotated[
        str,
        typer.Option(
            help="Encoder for --vectors: live, a version's name, or the folder of a version or of a run.",
            rich_help_panel=_FROM,
        ),
    ] = "live",
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="The items that are live, with attributes: parquet, csv, tsv or jsonl, file or folder of "
            "them. Items that it lacks leave; items that only it has start with a vector made from their "
            "attributes, and get is_cold = true. Default: every item that has a vector.",
            show_default=False,
            rich_help_panel=_CATALOGUE,
        ),
    ] = None,
    catalogue_item_column: Annotated[
        str, typer.Option(help="The catalogue's column of ids.", rich_help_panel=_CATALOGUE)
    ] = "item_id",
    attributes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Columns that callers can filter by, as for re4 export. Default: those that describe.",
            show_default=False,
            rich_help_panel=_CATALOGUE,
        ),
    ] = None,
    index: Annotated[
        str,
        typer.Option(
            help="As for re4 export: auto, a kind, or a FAISS factory string.", rich_help_panel=_INDEX
        ),
    ] = "auto",
    recall: Annotated[
        float,
        typer.Option(
            help="Share of the exact candidates that an approximate index must find.", rich_help_panel=_INDEX
        ),
    ] = 0.95,
    num_candidates: Annotated[
        int,
        typer.Option(help="Candidates of a request, for which the index is tuned.", rich_help_panel=_INDEX),
    ] = 100,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most memory that building the index may take, such as 8GiB. Default: what it needs.",
            show_default=False,
            rich_help_panel=_INDEX,
        ),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(
            help="What servers will search the index on: cuda builds what a GPU can hold.",
            rich_help_panel=_INDEX,
        ),
    ] = Device.CPU,
    min_golden_recall: Annotated[
        float | None,
        typer.Option(
            help="golden: share of the golden queries' exact answers found. Default: 0.05 below --recall.",
            show_default=False,
            rich_help_panel=_GATES,
        ),
    ] = None,
    min_reachable: Annotated[
        float,
        typer.Option(
            help="reachable: share that the index finds of sampled items that exact search finds by their "
            "own vector.",
            rich_help_panel=_GATES,
        ),
    ] = 0.9,
    min_uncrowded: Annotated[
        float,
        typer.Option(
            help="uncrowded: share of items that exact search finds by their own vector, as a multiple of "
            "the live version's.",
            rich_help_panel=_GATES,
        ),
    ] = 0.8,
    min_overlap: Annotated[
        float,
        typer.Option(
            help="drift: share of the live version's answers to real requests that are given again.",
            rich_help_panel=_GATES,
        ),
    ] = 0.2,
    min_agreement: Annotated[
        float,
        typer.Option(
            help="space: median cosine between --vectors and those that the encoder was trained with.",
            rich_help_panel=_GATES,
        ),
    ] = 0.9,
    min_items_ratio: Annotated[
        float,
        typer.Option(help="count: items, as a multiple of the live version's.", rich_help_panel=_GATES),
    ] = 0.8,
    max_items_ratio: Annotated[float, typer.Option(help="count: at most.", rich_help_panel=_GATES)] = 1.25,
    min_bytes_ratio: Annotated[
        float,
        typer.Option(
            help="size: bytes an item of index and vectors, as a multiple of the live version's.",
            rich_help_panel=_GATES,
        ),
    ] = 0.5,
    max_bytes_ratio: Annotated[float, typer.Option(help="size: at most.", rich_help_panel=_GATES)] = 2.0,
    keep: Annotated[
        int,
        typer.Option(
            help="Versions older than the new one that stay, to roll back to; the rest is removed.",
            rich_help_panel=_SCHEDULERS,
        ),
    ] = 3,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Do everything but publish and prune.", rich_help_panel=_SCHEDULERS),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write: outcome, stages, gates, counts; also where the job fails.",
            show_default=False,
            rich_help_panel=_SCHEDULERS,
        ),
    ] = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            help="Text file of metrics to write, NAME.prom, for Prometheus's node exporter.",
            show_default=False,
            rich_help_panel=_SCHEDULERS,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the report as one JSON object.", rich_help_panel=_SCHEDULERS),
    ] = False,
) -> None:
    """Make a fresh bundle version and publish it, if it passes every gate. Made to run unattended.

    It reads a run (or vectors made elsewhere), keeps what the catalogue says
    is live, gives new items a starting vector, builds and tunes the index,
    and measures the outcome against exact search and against the live
    version. Only then is it published, at once, and old versions go.

    One rebuild at a time works on a bundle directory. One that is stopped or
    killed publishes nothing, and the next one clears up after it.

    Exit codes: 0 published (or dry run passed), 1 failed, 2 wrong use, 3 a
    gate failed, 4 another rebuild is at work, 130 Ctrl-C, 143 SIGTERM. Only
    0 changes what is served.

    Every night, from the newest run and today's catalogue:

      re4 rebuild --run runs --catalogue catalogue.parquet --bundles bundles

    Vectors made elsewhere, for the live version's encoder:

      re4 rebuild --vectors v.npy --ids ids.npy --bundles bundles --dry-run
    """
    from re4.exporting.index.memory_estimate import parse_bytes
    from re4.exporting.index.tuning import Goal
    from re4.exporting.rebuild.job import RebuildRequest
    from re4.exporting.rebuild.job import rebuild as run_job
    from re4.exporting.rebuild.quality_gates import Bounds
    from re4.exporting.rebuild.report import JobReport

    job = JobReport(bundles=str(bundles), dry_run=dry_run)
    try:
        with _sigterm_ends(), job.ending():
            request = RebuildRequest(
                bundles=bundles,
                run=run,
                vectors=vectors,
                ids=ids,
                id_column=id_column,
                vector_column=vector_column,
                encoder_from=encoder_from,
                catalogue=catalogue,
                catalogue_item_column=catalogue_item_column,
                attributes=None if attributes is None else [name for name in attributes.split(",") if name],
                index=index,
                goal=Goal(recall=recall, num_candidates=num_candidates),
                bounds=Bounds(
                    min_golden_recall=min_golden_recall,
                    min_reachable=min_reachable,
                    min_uncrowded=min_uncrowded,
                    min_overlap=min_overlap,
                    min_agreement=min_agreement,
                    min_items_ratio=min_items_ratio,
                    max_items_ratio=max_items_ratio,
                    min_bytes_ratio=min_bytes_ratio,
                    max_bytes_ratio=max_bytes_ratio,
                ),
                memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
                device=device,
                num_kept=keep,
                dry_run=dry_run,
            )
            run_job(request, job, " ".join(["re4", *sys.argv[1:]])[:500])
    finally:
        _write(job, report, metrics_file, as_json=as_json)


def _write(job: "JobReport", report: Path | None, metrics_file: Path | None, *, as_json: bool) -> None:
    """Leave the report wherever it is wanted; what cannot be written hides nothing of what happened."""
    for write, file in ((job.write, report), (job.write_metrics, metrics_file)):
        if file is not None:
            try:
                write(file)
            except OSError as error:
                print_line(f"{file}: the report could not be written ({error})")
    if as_json:
        print_json(job.to_json())
    elif job.gates:
        table(
            f"{job.outcome}: {job.facts.get('version', 'nothing published')}",
            ["gate", "figure", "allowed", ""],
            [
                [gate.name, f"{gate.figure:.4g}", gate.bounds, "passed" if gate.passed else "FAILED"]
                for gate in job.gates
            ],
        )


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """End as Ctrl-C does where a scheduler says stop: what was begun is cleared up."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # not the main thread: nothing is installed
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)
