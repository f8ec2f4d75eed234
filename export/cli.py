"""The verb `re4 export`."""

from pathlib import Path
from typing import Annotated

import typer

from re4.console import print_json, table


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, made by `re4 train`.")],
    bundles: Annotated[
        Path, typer.Option(help="Bundle directory to publish into; created where it does not exist.")
    ],
    index: Annotated[str, typer.Option(help="Index kind: flat compares every item and is exact.")] = "flat",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for a machine to read.")
    ] = False,
) -> None:
    """Turn a run into a bundle version, and make it the live one.

    The encoder becomes an ONNX file that is checked against the trained one,
    the items become a FAISS index, and everything is published at once: a
    server on the same directory sees the version before or the new one.

    Example: re4 export runs/first --bundles bundles
    """
    from bundle.verify import read_manifest
    from export.exporter import ENCODER_DIFFERENCE, export_run

    version = export_run(run, bundles, index=index)
    manifest = read_manifest(bundles / version)
    difference = manifest.lineage[ENCODER_DIFFERENCE]
    if as_json:
        print_json(
            {
                "version": version,
                "path": str(bundles / version),
                "index": manifest.index.kind,
                "num_items": manifest.items.num_items,
                "num_bytes": {entry.name: entry.num_bytes for entry in manifest.files},
                ENCODER_DIFFERENCE: difference,
            }
        )
        return
    table(
        f"Published {version}",
        ["file", "bytes"],
        [[entry.name, f"{entry.num_bytes:,}"] for entry in manifest.files]
        + [["largest difference ONNX Runtime − PyTorch", f"{difference:.2g}"]],
    )
