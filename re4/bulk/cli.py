"""The subcommand `re4 bulk`."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Final

import typer

from re4.bundle.remote.options import takes_url
from re4.common import console
from re4.common.errors import UsageError
from re4.common.extras import require
from re4.common.ray_cluster import Engine, RayAddress
from re4.serving.client.request_options import (
    Diversity,
    DiversityAttribute,
    Drop,
    ExcludeHistory,
    Keep,
    MergeHere,
    NewItems,
    NumCandidates,
    SearchEffort,
    filters_of,
)
from re4.serving.histories.settings import HistorySettings
from re4.serving.settings import Fallback
from re4.settings.fields import construct
from re4.settings.options import with_options

_READING: Final = (
    *("histories", "histories_password_file"),
    *("max_history_events", "max_history_days", "history_timeout_ms"),
)
"""Settings of the store that matter where it is only read."""


@with_options(HistorySettings, "Store of histories", only=_READING)
@takes_url()
def bulk(
    bundles: Annotated[
        Path,
        typer.Option(
            help="Bundle directory, whose live version answers, the folder of a version, or s3://…."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make, with the parts and manifest.json.")],
    users: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file, or folder of such files, with a column user_id, and columns history and "
            "exclude (lists of item ids, oldest first) where there are. Without history, the store of "
            "histories is read."
        ),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Prepared data set: all of its users.")] = None,
    num_candidates: NumCandidates = 50,
    exclude_history: ExcludeHistory = False,
    merge: MergeHere = None,
    keep: Keep = None,
    drop: Drop = None,
    diversity: Diversity = 0.0,
    diversity_attribute: DiversityAttribute = "",
    search_effort: SearchEffort = 0.0,
    new_items: NewItems = 0,
    interest_vectors: Annotated[
        bool, typer.Option("--interest-vectors", help="Also write the interest vectors of each user.")
    ] = False,
    fallback: Annotated[
        Fallback,
        typer.Option(help="Candidates of a user without a usable history: none, or the most popular items."),
    ] = Fallback.NONE,
    num_processes: Annotated[
        int | None,
        typer.Option(help="Worker processes. Default: one for each usable core, of all nodes.", min=1),
    ] = None,
    part_users: Annotated[
        int | None, typer.Option(help="Users in a part. Default: 20,000, fewer for few users.", min=1)
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: processes of this machine. ray: of the nodes of a Ray cluster, which all reach the "
            "bundles, the users and --out under the same paths."
        ),
    ] = Engine.LOCAL,
    ray_address: RayAddress = None,
    **settings: Any,
) -> None:
    """Write the candidates of a whole population of users to parquet, without a server.

    Without --users and --dataset, these are all users of the store of histories. Run the same command again
    to continue a job that was stopped. The folder appears when it is complete.

    Example: re4 bulk --bundles bundles --dataset data --out candidates --exclude-history

    Example: re4 bulk --bundles bundles --users users.parquet --out candidates --filter genre=drama
    """
    require("re4 bulk", "faiss", "onnxruntime", "polars")
    from re4.bulk.job import BulkJob, run_bulk
    from re4.bulk.users import DatasetUsers, ParquetUsers
    from re4.bundle.layout import MANIFEST

    if users is not None and dataset is not None:
        raise UsageError("--users and --dataset cannot be given together")
    source = None if users is None else ParquetUsers(users.absolute())
    histories = None
    has_own = dataset is not None or (source is not None and source.has_histories)
    if settings["histories"] is not None or not has_own:
        directory = bundles.parent if (bundles / MANIFEST).exists() else bundles
        histories = construct(HistorySettings, settings)
        if not histories.is_remote:
            folder = histories.store_folder(directory)
            histories = None if folder is None else replace(histories, histories=str(folder.absolute()))
    began = perf_counter()
    result = run_bulk(
        BulkJob(
            bundles=bundles.absolute(),
            out=out.absolute(),
            users=source if dataset is None else DatasetUsers(dataset.absolute()),
            histories=histories,
            num_candidates=num_candidates,
            options={
                "exclude_history": exclude_history,
                "merge_policy": merge,
                "filters": filters_of(keep, drop),
                "diversity": diversity,
                "diversity_attribute": diversity_attribute,
                "search_effort": search_effort,
                "num_new_items": new_items,
                "return_interests": interest_vectors,
            },
            fallback=fallback,
            part_users=part_users,
            num_processes=num_processes,
            engine=engine,
            ray_address=ray_address,
        )
    )
    seconds = perf_counter() - began
    console.print_line(
        f"candidates of {result.num_users:,} users by {result.version} are in {out}, in {result.num_parts:,} "
        f"parts; {result.num_users / seconds:,.0f} users/s"
        + (f"; {result.num_errors:,} users have none: see the column error" if result.num_errors else "")
    )
