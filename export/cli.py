"""The verb `re4 export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from re4.common.console import print_json, table
from re4.exporting.index.devices import Device

if TYPE_CHECKING:
    from re4.bundle.manifest import IndexInfo


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, made by `re4 train`.")],
    bundles: Annotated[
        Path, typer.Option(help="Bundle directory to publish into; created where it does not exist.")
    ],
    index: Annotated[
        str,
        typer.Option(
            help="auto chooses by the number of items. flat compares every item and is exact. hnsw, "
            "hnsw-sq8, ivf, ivf-sq8, ivf-pq and ivf-rabitq are approximate and faster. So is a FAISS factory "
            "string of an index that servers load, such as IVF1024,PQ32x4fs."
        ),
    ] = "auto",
    recall: Annotated[
        float,
        typer.Option(help="Share of the exact candidates that an approximate index must find, 0.6 to 1."),
    ] = 0.95,
    num_candidates: Annotated[
        int, typer.Option(help="Candidates of a request, for which the index is tuned.")
    ] = 100,
    attributes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help='Columns of the catalogue that callers can filter by; "" for none. Without this: every '
            "column of texts, whole numbers, booleans or lists of those that has at least 2 items to a value "
            "and at most 100,000 values, so no titles.",
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most memory that building the index may take, such as 8GiB; what would take more is "
            "refused before it begins. Without this: what the index needs.",
        ),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(
            help="What servers will search the index on. cuda builds what a GPU can hold: flat, ivf, ivf-sq8 "
            "or cagra, a graph that a GPU has to build."
        ),
    ] = Device.CPU,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for a machine to read.")
    ] = False,
) -> None:
    """Turn a run into a bundle version, and make it the live one.

    The encoder becomes an ONNX file that is checked against the trained one,
    the items become a FAISS index, and everything is published at once: a
    server on the same directory sees the version before or the new one.

    An approximate index is tuned on half of the run's held-out histories to the
    fastest setting that reaches --recall on the other half. Where none does,
    nothing is published. What else could be had is in frontier.png.

    Interrupted, it keeps the finished stages of the index in the bundle
    directory: the same command goes on from there.

    Example: re4 export runs/first --bundles bundles
    """
    from re4.bundle.verify import read_manifest
    from re4.exporting.assemble import ENCODER_DIFFERENCE
    from re4.exporting.exporter import export_run
    from re4.exporting.index.memory_estimate import parse_bytes
    from re4.exporting.index.tuning import Goal

    goal = Goal(recall=recall, num_candidates=num_candidates)
    columns = None if attributes is None else [name for name in attributes.split(",") if name]
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    version = export_run(
        run, bundles, index=index, goal=goal, attributes=columns, memory_limit=limit, device=device
    )
    manifest = read_manifest(bundles / version)
    difference = manifest.lineage[ENCODER_DIFFERENCE]
    if as_json:
        print_json(
            {
                "version": version,
                "path": str(bundles / version),
                "index": manifest.index.model_dump(mode="json"),
                "num_items": manifest.items.num_items,
                "attributes": [info.model_dump(mode="json") for info in manifest.items.attributes],
                "num_bytes": {entry.name: entry.num_bytes for entry in manifest.files},
                ENCODER_DIFFERENCE: difference,
            }
        )
        return
    table(
        f"Published {version}",
        ["file", "bytes"],
        [[entry.name, f"{entry.num_bytes:,}"] for entry in manifest.files]
        + [["largest difference ONNX Runtime − PyTorch", f"{difference:.2g}"]]
        + [[f"attribute {info.name}", f"{info.num_values:,} values"] for info in manifest.items.attributes]
        + _index_rows(manifest.index),
    )


def _index_rows(info: "IndexInfo") -> list[list[str]]:
    settings = ", ".join(f"{name} {value:g}" for name, value in info.search_parameters.items())
    rows = [["index", f"{info.kind} ({info.factory})"], ["search parameters", settings or "none"]]
    recall = f"recall of {info.num_candidates} candidates, {info.num_queries} held-out requests"
    return [*rows, [recall, f"{info.recall:.4f}"]]
