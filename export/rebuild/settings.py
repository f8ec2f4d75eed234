"""Settings of `re4 rebuild`, each declared once. Imports neither FAISS nor PyTorch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from re4.common.errors import DataError, UsageError
from re4.exporting.settings import VersionSettings
from re4.settings.fields import option_name, setting
from re4.training.run.run_folder import newest_run

LIVE: Final = "live"
"""The default of `--encoder-from`: the live version."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Origin of the item vectors and of the encoder."""

    run: Path | None = setting(
        None,
        "A run's folder, or a folder of runs, of which the newest finished one is taken.",
        default_text="none; give --run or --vectors",
    )
    vectors: Path | None = setting(
        None,
        "Item vectors made elsewhere: .npy of float32, items by width, with --ids, or one parquet file with "
        "both.",
        default_text="none; give --run or --vectors",
    )
    ids: Path | None = setting(
        None, "Item ids of the rows of --vectors: .npy of integers or text.", default_text="none"
    )
    id_column: str = setting("item_id", "Column of ids in a parquet file.")
    vector_column: str = setting("vector", "Column of vectors (lists of numbers) in a parquet file.")
    encoder_from: str = setting(
        LIVE, "Encoder for --vectors: live, a version's name, or the folder of a version or of a run."
    )

    def __post_init__(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: naming the options.
        """
        if (self.run is None) == (self.vectors is None):
            raise UsageError("give either --run or --vectors: where the item vectors come from")
        if self.vectors is not None:
            is_parquet = self.vectors.suffix.lower() == ".parquet"
            if is_parquet == (self.ids is not None):
                problem = (
                    "a parquet file holds the ids as well, leave --ids out"
                    if is_parquet
                    else "--ids is missing"
                )
                raise UsageError(f"--vectors {self.vectors}: {problem}")
        elif self.ids is not None or self.encoder_from != LIVE:
            raise UsageError(
                "--ids and --encoder-from go with --vectors: a run brings its ids and its encoder"
            )


@dataclass(frozen=True, kw_only=True)
class CatalogueSettings:
    """The items that are live."""

    catalogue: Path | None = setting(
        None,
        "The items that are live, with attributes: parquet, csv, tsv or jsonl, file or folder of them. Items "
        "that are not in it are removed; items that have no vector yet start with a vector made from their "
        "attributes, and get is_cold = true.",
        default_text="every item that has a vector",
    )
    catalogue_item_column: str | None = setting(
        None,
        "The catalogue's column of ids.",
        default_text="as in `data prepare` of the run's data set, else item_id",
    )


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds that a version must keep to be published."""

    min_golden_recall: float | None = setting(
        None,
        "golden: share of the golden queries' exact answers found.",
        default_text="0.05 below --recall",
    )
    min_self_recall: float = setting(
        0.9,
        "self_recall: share that the index finds of sampled items that exact search finds by their own "
        "vector.",
        former="min_reachable",
    )
    max_item_share: float = setting(
        0.6,
        "item_share: share of real requests that have one and the same item among their first 10 candidates.",
    )
    max_item_share_rise: float = setting(
        0.2, "item_share: at most this much above the live version's share, as a difference."
    )
    min_hubness_ratio: float = setting(
        0.8,
        "hubness: share of items that exact search finds by their own vector, as a multiple of the live "
        "version's.",
        former="min_uncrowded",
    )
    min_coverage_ratio: float = setting(
        0.5,
        "coverage: share of the catalogue in the list of any held-out user, as a multiple of the live "
        "version's.",
    )
    min_new_items_ratio: float = setting(
        0.02,
        "new_items: share of the items without a trained vector in those lists, as a multiple of the trained "
        "items' share.",
    )
    min_interests_ratio: float = setting(
        0.5,
        "interests: effective number of interests in the lists of real requests, as a multiple of the live "
        "version's; for versions with several interests.",
    )
    min_overlap: float = setting(
        0.2, "drift: share of the live version's answers to real requests that are given again."
    )
    min_recall_change: float = setting(
        -0.05,
        "recall_change: upper end of the 95 % interval of the change of Recall@50 from the live version, on "
        "held-out users that neither training saw, as a share of the live version's; -1 is off.",
    )
    min_agreement: float = setting(
        0.9,
        "embedding_space: median cosine between --vectors and those that the encoder was trained with.",
    )
    min_items_ratio: float = setting(0.8, "count: items, as a multiple of the live version's.")
    max_items_ratio: float = setting(1.25, "count: at most.")
    min_bytes_ratio: float = setting(
        0.5, "size: bytes an item of index and vectors, as a multiple of the live version's."
    )
    max_bytes_ratio: float = setting(2.0, "size: at most.")

    def __post_init__(self) -> None:
        """Refuse bounds that nothing or everything keeps.

        Raises:
            UsageError: naming the option.
        """
        for name in ("min_golden_recall", "min_self_recall", "min_overlap", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{option_name(name)} is {value:g}; it must be from 0 (off) to 1")
        if not -1 <= self.min_recall_change <= 1:
            raise UsageError(
                f"{option_name('min_recall_change')} is {self.min_recall_change:g}; it must be from -1 (off) "
                "to 1"
            )
        for name in ("max_item_share", "max_item_share_rise"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UsageError(f"{option_name(name)} is {value:g}; it must be above 0, up to 1 (off)")
        for name in (
            *("min_hubness_ratio", "min_coverage_ratio", "min_new_items_ratio"),
            *("min_interests_ratio", "min_items_ratio", "min_bytes_ratio"),
        ):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{option_name(name)} is {value:g}; it must be 0 (off) or more")
        for low, high in (("min_items_ratio", "max_items_ratio"), ("min_bytes_ratio", "max_bytes_ratio")):
            if not getattr(self, high) > getattr(self, low):
                raise UsageError(
                    f"{option_name(high)} is {getattr(self, high):g}; it must be more than "
                    f"{option_name(low)}, {getattr(self, low):g}"
                )


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Settings for schedulers."""

    keep: int = setting(3, "Versions older than the new one that stay, to roll back to; the rest is removed.")
    dry_run: bool = setting(False, "Do everything but publish and prune.", option="--dry-run")

    def __post_init__(self) -> None:
        """Refuse a negative number.

        Raises:
            UsageError: naming the option.
        """
        if self.keep < 0:
            raise UsageError(f"--keep {self.keep}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Places that the report is written to."""

    report: Path | None = setting(
        None,
        "JSON file to write: outcome, stages, gates, counts; also where the job fails.",
        default_text="none",
    )
    metrics_file: Path | None = setting(
        None,
        "Text file of metrics to write, NAME.prom, for Prometheus's node exporter.",
        default_text="none",
    )
    as_json: bool = setting(False, "Print the report as one JSON object.", option="--json")


@dataclass(frozen=True, kw_only=True)
class RebuildRequest:
    """All settings of a rebuild. `re4.settings.fields.construct` makes one from flat values."""

    bundles: Path
    """Bundle directory to publish into."""
    source: SourceSettings
    catalogue: CatalogueSettings = field(default_factory=CatalogueSettings)
    version: VersionSettings = field(default_factory=VersionSettings)
    bounds: Bounds = field(default_factory=Bounds)
    job: JobSettings = field(default_factory=JobSettings)

    def check_inputs(self) -> None:
        """Refuse paths that do not exist, before the libraries of the job are loaded.

        Raises:
            RunError: there is no finished run.
            DataError: a file is missing.
        """
        if self.source.run is not None:
            newest_run(self.source.run)
        for path in (self.source.vectors, self.source.ids, self.catalogue.catalogue):
            if path is not None and not path.exists():
                raise DataError(f"{path} does not exist; check the path")
