"""The inputs of a version: item vectors, ids, popularity, histories, an encoder; and how a run gives them.

Everything is checked against everything else here, so that later stages (`assemble.py`) need not check again.

Legend: P histories, L history length, N items, D embedding, B batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn

from re4.bundle.manifest import ModelInfo
from re4.common.errors import ExportError
from re4.common.onnx_runtime import onnxruntime
from re4.exporting.catalogue.items import Items, items_of
from re4.exporting.encoder.onnx_encoder import export_encoder
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.encoder.parity import compare
from re4.exporting.storage.mapped_vectors import CHUNK_ROWS, map_unnamed_file, sha256_of
from re4.training.config import TrainConfig
from re4.training.run.trained_on import TrainedOn

CATALOGUE: Final = "catalogue"
"""Key in a manifest's lineage: the file of the live items; absent where every item with a vector is live."""


TRAINED_ON: Final = "trained_on"
"""Key in the manifest's lineage: the data sets of the model's training."""


class ModelToExport(Protocol):
    """The part of a trained model that export uses."""

    @property
    def encoder(self) -> nn.Module:
        """The forward flow."""

    @property
    def item_table_ND(self) -> torch.Tensor:
        """Item vectors as they were trained; may be memory-mapped."""

    def as_scored(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return some of them as they are served, float32."""


class RunToExport(Protocol):
    """The part of a run that export uses; `re4.training.run.run.Run` is one."""

    path: Path
    config: TrainConfig
    catalogue_item_column: str | None

    def scan_items(self) -> pl.LazyFrame:
        """Return the catalogue in row order, `item_id` among its columns, to be read in chunks."""

    def item_counts_N(self) -> NDArray[np.int64]:
        """Return the number of training events of each item."""

    def load_model(self) -> ModelToExport:
        """Load the trained model."""

    def probe_histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return real held-out histories: rows_PL, newest first, padded with 0, and lengths_P."""

    def evaluation(self) -> dict[str, Any]:
        """Return metrics by split."""

    def trained_on(self) -> list[TrainedOn]:
        """Return the data sets of its training and of the runs before it."""


class VersionEncoder(Protocol):
    """An encoder that can become a version's."""

    def write(self, path: Path, model: ModelInfo) -> float:
        """Write it as an ONNX file; return the largest difference from the trained one in its checks."""

    def check(
        self, exported: OnnxEncoder, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> float:
        """Compare the written with the trained encoder on real histories; return the largest difference."""


@dataclass(frozen=True, kw_only=True)
class TrainedEncoder:
    """The encoder of a run: PyTorch, still to be converted."""

    module: nn.Module
    num_interests: int

    def write(self, path: Path, model: ModelInfo) -> float:
        """Convert it; see `VersionEncoder`."""
        return export_encoder(
            self.module,
            num_interests=model.num_interests,
            embedding_dim=model.embedding_dim,
            max_history_length=model.max_history_length,
            space=model.space,
            path=path,
        )

    def check(
        self, exported: OnnxEncoder, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> float:
        """Run both; see `VersionEncoder`."""
        trained = self.module.cpu().eval()
        return compare(trained, exported, history_vectors_BLD, lengths_B, self.num_interests)


@dataclass(frozen=True, kw_only=True)
class VersionInputs:
    """The inputs of a version, row by row; rows of a run begin with the most popular item."""

    where: str
    """The origin, for error messages."""
    vectors_ND: NDArray[np.float32]
    """Finite, C order; may be memory-mapped."""
    items: Items
    """Ids and catalogue columns of the rows."""
    counts_N: NDArray[np.int64]
    """Events of each item: its popularity; may be memory-mapped."""
    rows_PL: NDArray[np.int64]
    """Real histories, at least one: newest first, padded with 0."""
    lengths_P: NDArray[np.int64]
    """Events of each history, 1 to the model's `max_history_length`."""
    encoder: VersionEncoder
    model: ModelInfo
    """`model.space` is the fingerprint of the trained vectors, in whose space all of `vectors_ND` are."""
    evaluation: Mapping[str, JsonValue]
    lineage: Mapping[str, JsonValue]
    catalogue_item_column: str | None = None
    """The catalogue's column of ids when the run's data set was prepared; None where it is unknown."""
    is_trained_with_attributes: bool = False
    """Whether the vectors are those of a training with `--attributes`."""
    cold_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Items whose vector was not trained but made from their attributes; ascending."""

    @property
    def num_trained(self) -> int:
        """The number of items whose vector was trained."""
        return len(self.vectors_ND) - len(self.cold_rows)

    def trained_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of some trained items, given by their numbers among the trained ones."""
        num_trained_before = self.cold_rows - np.arange(len(self.cold_rows))
        return numbers + np.searchsorted(num_trained_before, numbers, side="right")


def inputs_from_run(run: RunToExport, folder: Path) -> VersionInputs:
    """Read the inputs from a finished run.

    Args:
        run: The run.
        folder: The vectors are written there, into a file without a name, and mapped from it.

    Raises:
        RunError: the run is damaged.
        ExportError: its parts do not fit together, or a vector is not finite.
        OSError: the folder has no room for them.
    """
    config, model = run.config, run.load_model()
    items = items_of(run.scan_items())
    vectors_ND = _vectors(run, items, model, folder)
    rows_PL, lengths_P = _probe_histories(run, len(vectors_ND))
    counts_N = run.item_counts_N()
    if counts_N.shape != (len(vectors_ND),):
        raise ExportError(
            f"{run.path}: {len(counts_N)} item counts for {len(vectors_ND)} items. Train it again"
        )
    return VersionInputs(
        where=str(run.path),
        vectors_ND=vectors_ND,
        items=items,
        counts_N=counts_N,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        encoder=TrainedEncoder(module=model.encoder, num_interests=config.K),
        model=model_info(config, vectors_ND),
        evaluation=run.evaluation(),
        catalogue_item_column=run.catalogue_item_column,
        is_trained_with_attributes=bool(config.attributes),
        lineage={
            "run": run.path.resolve().name,
            "config": config.to_json(),
            TRAINED_ON: trained_on_facts(run.trained_on()),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )


def trained_on_facts(trained_on: Sequence[TrainedOn]) -> list[JsonValue]:
    """Return the data sets of a training for a manifest.

    Data sets that were split by the same rule and seed held out the same users, so that one of them suffices.
    """
    facts: list[JsonValue] = []
    rules = []
    for each in trained_on:
        if each.split is None or "split_rule" not in each.split or each.split not in rules:
            rules.append(each.split)
            facts.append(asdict(each))
    return facts


def model_info(config: TrainConfig, vectors_ND: NDArray[np.float32]) -> ModelInfo:
    """Return the manifest's facts about an encoder and the trained vectors that it belongs to."""
    return ModelInfo(
        name=config.model,
        num_interests=config.K,
        embedding_dim=config.embedding_dim,
        max_history_length=config.L,
        space=sha256_of(vectors_ND),
    )


def _vectors(run: RunToExport, items: Items, model: ModelToExport, folder: Path) -> NDArray[np.float32]:
    """Return item vectors, checked against the ids, mapped from a file in the folder."""
    table_ND, item_ids = model.item_table_ND.detach(), items.ids
    if not len(item_ids):
        raise ExportError(f"{run.path}: the run has no items: nothing can be retrieved from it")
    shape = (len(item_ids), run.config.embedding_dim)
    if tuple(table_ND.shape) != shape:
        raise ExportError(
            f"{run.path}: item vectors of shape {tuple(table_ND.shape)} for {len(item_ids)} items of width "
            f"{run.config.embedding_dim}: the run is damaged. Train it again"
        )
    vectors_ND = map_unnamed_file(folder, shape)
    is_wrong_N = np.empty(len(item_ids), np.bool_)
    for start in range(0, len(item_ids), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        vectors_ND[rows] = model.as_scored(table_ND[rows]).cpu().numpy()
        is_wrong_N[rows] = ~np.isfinite(vectors_ND[rows]).all(axis=1)
    vectors_ND.flags.writeable = False
    wrong = np.flatnonzero(is_wrong_N)
    if wrong.size:
        raise ExportError(
            f"{run.path}: the vector of item {item_ids[int(wrong[0])]!r} (row {wrong[0]}) is not finite, nor "
            f"are those of {wrong.size - 1} others: training went astray. See its metrics, and train it again"
        )
    return vectors_ND


def _probe_histories(run: RunToExport, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the run's real histories, checked: rows_PL and lengths_P."""
    rows_PL, lengths_P = run.probe_histories()
    if len(rows_PL) == 0:
        raise ExportError(
            f"{run.path}: holds no held-out histories to make golden queries of. Train it again"
        )
    longest = min(rows_PL.shape[1], run.config.L)
    for name, seen, low, high in (("row", rows_PL, 0, num_items - 1), ("length", lengths_P, 1, longest)):
        if not low <= seen.min() <= seen.max() <= high:
            raise ExportError(
                f"{run.path}: held-out histories with a {name} from {seen.min()} to {seen.max()}; {low} to "
                f"{high} is allowed: the run is damaged. Train it again"
            )
    return rows_PL, lengths_P
