"""The functions behind `re4 export` and `re4 rebuild`, with the defaults of the subcommands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from re4.common.errors import UsageError
from re4.exporting.rebuild.settings import RebuildRequest
from re4.exporting.settings import VersionSettings
from re4.settings.fields import construct, declared, plain
from re4.settings.sources import checked, unknown_names
from re4.training.run.run_folder import refuse_unfinished_run

if TYPE_CHECKING:
    from re4.exporting.rebuild.report import RebuildReport

_SettingsT = TypeVar("_SettingsT")


class ExportOptions(TypedDict, total=False):
    """Options of `export`, by the names of those of `re4 export`; the defaults are the same."""

    index: str
    """`auto`, `flat`, `hnsw`, `hnsw-sq8`, `ivf`, `ivf-sq8`, `ivf-pq`, `ivf-rabitq`, or a FAISS factory."""
    recall: float
    """Share of the exact candidates that an approximate index must find, 0.6 to 1."""
    num_candidates: int
    """Candidates of a request, for which the index is tuned."""
    attributes: Sequence[str] | None
    """Columns of the catalogue that callers can filter by; None to choose those that describe items."""
    title_column: str | None
    """Column of the catalogue with the titles of the items; "" for none, None for `title`, or else `name`."""
    cold_share: float | None
    """Share of the places in lists of held-out users that items without a trained vector get; None for their
    share of the catalogue, at most 0.1."""
    memory_limit: str | None
    """Most memory that building the index may take, such as `8GiB`; None for what it needs."""
    go_live: bool
    """Make the version the live one; otherwise servers load it after a canary or a rollback to it."""
    device: Literal["cpu", "cuda"]
    """Device that servers will search the index on."""


class RebuildOptions(ExportOptions, total=False):
    """Options of `rebuild`, by the names of those of `re4 rebuild`; the defaults are the same."""

    run: Path | str
    """A run's folder, or a folder of runs, of which the newest finished one is taken."""
    vectors: Path | str
    """Instead of `run`: item vectors, `.npy` with `ids`, or one parquet file with both."""
    ids: Path | str
    """Item ids of the rows of `vectors`, `.npy`."""
    id_column: str
    """Column of ids in a parquet file."""
    vector_column: str
    """Column of vectors in a parquet file."""
    encoder_from: str
    """Encoder for `vectors`: `live`, a version's name, or the folder of a version or of a run."""
    catalogue: Path | str | None
    """The items that are live, with attributes; None for every item that has a vector."""
    catalogue_item_column: str | None
    """The catalogue's column of ids; None for that of the run's data set, else `item_id`."""
    keep: int
    """Versions older than the new one that stay; the rest is removed."""
    dry_run: bool
    """Do everything but publish and prune."""
    min_golden_recall: float
    """Gate `golden`: smallest share of the golden queries' exact answers that is found."""
    min_self_recall: float
    """Gate `self_recall`: smallest share that the index finds of sampled items that exact search finds by
    their own vector."""
    max_item_share: float
    """Gate `item_share`: largest share of real requests that have one and the same item among their first 10
    candidates."""
    max_item_share_rise: float
    """Gate `item_share`: largest difference of that share to the live version's."""
    min_hubness_ratio: float
    """Gate `hubness`: smallest share of items that exact search finds by their own vector, as a multiple of
    the live version's."""
    min_coverage_ratio: float
    """Gate `coverage`: smallest share of the catalogue in the lists of held-out users, as a multiple of the
    live version's."""
    min_new_items_ratio: float
    """Gate `new_items`: smallest share of the new items in those lists, as a multiple of the trained items'
    share."""
    min_interests_ratio: float
    """Gate `interests`: smallest effective number of interests in the lists of real requests, as a multiple
    of the live version's."""
    min_overlap: float
    """Gate `drift`: smallest share of the live version's answers that is given again."""
    min_recall_change: float
    """Gate `recall_change`: smallest upper end of the 95 % interval of the change of Recall@50 from the live
    version, as a share of the live version's; -1 is off."""
    min_agreement: float
    """Gate `embedding_space`: smallest median cosine between `vectors` and those that the encoder was
    trained with."""
    min_items_ratio: float
    """Gate `count`: smallest number of items, as a multiple of the live version's."""
    max_items_ratio: float
    """Gate `count`: largest number of items, as a multiple of the live version's."""
    min_bytes_ratio: float
    """Gate `size`: smallest number of bytes for each item, as a multiple of the live version's."""
    max_bytes_ratio: float
    """Gate `size`: largest number of bytes for each item, as a multiple of the live version's."""


def export(run: Path | str, bundles: Path | str, **options: Unpack[ExportOptions]) -> str:
    """Turn a run into a bundle version and make it the live one, as `re4 export` does.

    Args:
        run: The run's folder.
        bundles: Bundle directory to publish into; created where it does not exist.
        options: Index and attributes: see `ExportOptions`.

    Returns:
        The version's name.

    Raises:
        UsageError: an option is unknown or not allowed, or no server loads such an index.
        RunError: the run is missing, unfinished or damaged.
        ExportError: the run cannot become a version. Nothing was published.
        BundleError: the directory cannot be written, or an item id cannot be stored.
    """
    settings = _settings(VersionSettings, options)
    refuse_unfinished_run(Path(run))
    from re4.exporting.exporter import export_run

    return export_run(Path(run), Path(bundles), settings)


def rebuild(bundles: Path | str, **options: Unpack[RebuildOptions]) -> "RebuildReport":
    """Make a version and publish it if it passes every gate, as `re4 rebuild` does.

    Args:
        bundles: Bundle directory to publish into; created where it does not exist.
        options: `run` or `vectors`, and further options: see `RebuildOptions`.

    Returns:
        The report: the version's name, the gates' figures, counts and times.

    Raises:
        UsageError: an option is unknown or not allowed.
        BundleBusyError: another rebuild of the directory is at work.
        GateError: a gate failed. Nothing was published.
        Re4Error: any other failure. Nothing was published.
    """
    request = _settings(RebuildRequest, options, bundles=Path(bundles))
    from re4.exporting.rebuild.report import RebuildReport

    report = RebuildReport(bundles=str(bundles), dry_run=request.job.dry_run)
    with report.ending():
        request.check_inputs()
        from re4.exporting.rebuild.job import rebuild as run_job

        run_job(request, report, "re4.rebuild")
    return report


def _settings(kind: type[_SettingsT], options: Mapping[str, Any], **others: Any) -> _SettingsT:
    known = declared(kind)
    names = {item.field.metadata["former"]: name for name, item in known.items()}
    options = {names.get(name, name): value for name, value in options.items()}
    problem = unknown_names("options:", options, known)
    if problem:
        raise UsageError(problem)
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(given.get("attributes", ""), str):
        given["attributes"] = ",".join(given["attributes"])
    return construct(
        kind, {name: checked(name, plain(value), known[name]) for name, value in given.items()} | others
    )
