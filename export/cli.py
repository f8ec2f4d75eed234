"""The subcommand `re4 export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.common.console import print_json, print_line, table
from re4.exporting.settings import VersionSettings
from re4.settings.fields import construct
from re4.settings.options import with_options
from re4.training.run.run_folder import refuse_unfinished_run

if TYPE_CHECKING:
    from re4.bundle.manifest import IndexInfo


@with_options(VersionSettings, "Index and attributes")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, made by `re4 train`.")],
    bundles: Annotated[
        Path,
        typer.Option(help="Bundle directory to publish into, created where it does not exist, or s3://…."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for a machine to read.")
    ] = False,
    mlflow: Annotated[
        bool,
        typer.Option(
            "--mlflow", help="Log the version as artefacts of the run in MLflow, of `re4 train --mlflow`."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also list the files of the version.")] = False,
    **settings: Any,
) -> None:
    """Turn a run into a bundle version, and make it the live one (`--no-go-live`: not yet).

    The encoder becomes an ONNX file that is checked against the trained one,
    the items become a FAISS index, and everything is published at once: a
    server on the same directory sees the version before or the new one.

    An approximate index is tuned on half of the run's held-out histories to the
    fastest setting that reaches --recall on the other half. Where none does,
    nothing is published. All settings worth having are drawn in frontier.png.

    Interrupted, it keeps the finished stages of the index in the bundle
    directory: the same command goes on from there.

    Example: re4 export runs/first --bundles bundles
    """
    chosen = construct(VersionSettings, settings)
    refuse_unfinished_run(run)
    from re4.bundle.remote.address import url_of
    from re4.bundle.remote.working_copy import bundle_directory
    from re4.bundle.verify import read_manifest
    from re4.exporting.assemble import ENCODER_DIFFERENCE
    from re4.exporting.exporter import export_run
    from re4.training.run.mlflow_tracking import check_mlflow, check_tracked, track_bundle

    if mlflow:
        check_mlflow()
        check_tracked(run)  # before anything is published
    with bundle_directory(bundles) as folder:
        version = export_run(run, folder, chosen)
        if mlflow:
            track_bundle(run, folder / version)
        manifest = read_manifest(folder / version)
    difference = manifest.lineage[ENCODER_DIFFERENCE]
    if as_json:
        print_json(
            {
                "version": version,
                "path": str(folder / version),
                "index": manifest.index.model_dump(mode="json"),
                "num_items": manifest.items.num_items,
                "attributes": [info.model_dump(mode="json") for info in manifest.items.attributes],
                "num_bytes": {entry.name: entry.num_bytes for entry in manifest.files},
                ENCODER_DIFFERENCE: difference,
            }
        )
        return
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    table(
        f"Published {version}",
        ["", ""],
        [
            ["items", f"{manifest.items.num_items:,}"],
            ["files", f"{len(manifest.files)}, {num_bytes / 1e6:,.1f} MB"],
            *_index_rows(manifest.index),
            *(
                [f"attribute {info.name}", f"{info.num_values:,} values"]
                for info in manifest.items.attributes
            ),
            ["largest difference ONNX Runtime − PyTorch", f"{difference:.2g}"],
        ],
    )
    if verbose:
        table("Files", ["", "bytes"], [[entry.name, f"{entry.num_bytes:,}"] for entry in manifest.files])
    where = url_of(bundles) or bundles
    if chosen.go_live:
        print_line(
            f"Servers on {where} follow by themselves. The next commands:\n"
            f"  re4 serve --bundles {where}\n"
            f"  re4 versions {where}"
        )
    else:
        print_line(f"It is not live. The next command:\n  re4 canary {where} {version} --share 5%")


def _index_rows(info: "IndexInfo") -> list[list[str]]:
    settings = ", ".join(f"{name} {value:g}" for name, value in info.search_parameters.items())
    rows = [["index", f"{info.kind} ({info.factory})"], ["search parameters", settings or "none"]]
    recall = f"recall of {info.num_candidates} candidates, {info.num_queries} held-out requests"
    return [*rows, [recall, f"{info.recall:.4f}"]]
