"""The subcommand `re4 rebuild`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from re4.common.console import print_json, print_line, table
from re4.exporting.rebuild.settings import (
    Bounds,
    CatalogueSettings,
    JobSettings,
    RebuildRequest,
    ReportSettings,
    SourceSettings,
)
from re4.exporting.settings import VersionSettings
from re4.settings.fields import construct
from re4.settings.options import with_options

if TYPE_CHECKING:
    from re4.exporting.rebuild.report import RebuildReport


@with_options(ReportSettings, "For schedulers")
@with_options(JobSettings, "For schedulers")
@with_options(Bounds, "Gates: what must hold before anything is published")
@with_options(VersionSettings, "Index and attributes")
@with_options(CatalogueSettings, "What is live")
@with_options(SourceSettings, "Where the vectors come from")
def rebuild(
    bundles: Annotated[
        Path, typer.Option(help="Bundle directory to publish into, or s3://…; servers follow by themselves.")
    ],
    **settings: Any,
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
    from re4.bundle.remote.working_copy import bundle_directory
    from re4.exporting.rebuild.report import RebuildReport

    output = construct(ReportSettings, settings)
    report = RebuildReport(bundles=str(bundles), dry_run=bool(settings.get("dry_run")))
    try:
        with _sigterm_ends(), report.ending(), bundle_directory(bundles) as folder:
            request = construct(RebuildRequest, {"bundles": folder, **settings})
            request.check_inputs()
            from re4.exporting.rebuild.job import rebuild as run_job

            run_job(request, report, " ".join(["re4", *sys.argv[1:]])[:500])
    finally:
        _write(report, output)


def _write(report: "RebuildReport", output: ReportSettings) -> None:
    """Write the report wherever it is wanted. A failure to write it does not hide the outcome of the job."""
    for write, file in ((report.write, output.report), (report.write_metrics, output.metrics_file)):
        if file is not None:
            try:
                write(file)
            except OSError as error:
                print_line(f"{file}: the report could not be written ({error})")
    if output.as_json:
        print_json(report.to_json())
    elif report.gates:
        table(
            f"{report.outcome}: {report.version or 'nothing published'}",
            ["gate", "figure", "allowed", ""],
            [
                [gate.name, f"{gate.figure:.4g}", gate.bounds, "passed" if gate.passed else "FAILED"]
                for gate in report.gates
            ],
        )


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """Let SIGTERM, by which a scheduler stops a job, end the block as Ctrl-C does, with its clean-up."""

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
