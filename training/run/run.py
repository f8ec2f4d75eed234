"""A run on disk: the result of a training, and the input of export.

    RUN/
      config.json            resolved configuration, data set, counts, best epoch, code version
      weights.safetensors    item vectors, encoder and flows at the best epoch
      items.parquet          row -> external id, with the catalogue's attributes
      item_counts.npy        int64 [N], training events of each item
      probe_histories.npz    real held-out histories, for golden queries and index tuning
      metrics.jsonl          one line an epoch: losses, speed, validation metrics
      evaluation.json        metrics of the splits evaluated so far, by split
      checkpoint.safetensors only while training: the whole state, for `re4 resume`
      checkpoints/           the same of a training on several ranks, in shards
      lock                   only while training: locked by the process that trains

A file appears whole or not at all. `config.json` is written last: a folder without it is not a
finished run. It holds the checksums of the files that do not change later; the weights hold their
own.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4 import __version__
from re4.common.arrays import map_array, read_arrays
from re4.common.errors import DataError, RunError
from re4.common.files import crc32_of, replacing, write_json
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.model.model import MultiInterestModel
from re4.training.run.run_folder import CONFIG, refuse_unfinished_run
from re4.training.run.tensor_files import read_tensors, write_tensors
from re4.training.run.trained_on import TrainedOn

WEIGHTS = "weights.safetensors"
ITEMS = "items.parquet"
COUNTS = "item_counts.npy"
PROBES = "probe_histories.npz"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
MAX_PROBES = 10_000
_DAMAGE = (ValueError, KeyError, TypeError, RuntimeError, pl.exceptions.PolarsError)
"""Exceptions from reading a damaged file of a run."""


def write_metrics(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records of all epochs so far, a line each."""
    with replacing(path / METRICS) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_weights(path: Path, model: MultiInterestModel) -> None:
    """Save the model's weights in place of an earlier epoch's."""
    write_tensors(path / WEIGHTS, model.run_weights())


def finish_run(
    path: Path,
    *,
    config: TrainConfig,
    dataset: Dataset,
    best_epoch: int,
    evaluation: dict[str, Any],
    started_from: str | None,
    trained_before: Sequence[TrainedOn],
) -> None:
    """Write all files but weights and metrics, the configuration last."""
    with replacing(path / ITEMS) as part:
        shutil.copyfile(dataset.path / "items.parquet", part)
    with replacing(path / COUNTS) as part, part.open("wb") as file:
        np.save(file, dataset.item_counts())
    rows_UL, lengths_U = dataset.valid.histories(config.L)
    chosen = np.random.default_rng(config.seed).permutation(len(rows_UL))[:MAX_PROBES]
    with replacing(path / PROBES) as part, part.open("wb") as file:
        np.savez(file, rows_QL=rows_UL[chosen], lengths_Q=lengths_U[chosen])
    write_evaluation(path, "valid", evaluation)
    write_json(
        path / CONFIG,
        {
            "code_version": __version__,
            "dataset": str(dataset.path.resolve()),
            "num_items": dataset.num_items,
            "best_epoch": best_epoch,
            "started_from": started_from,
            "catalogue_item_column": _catalogue_item_column(dataset),
            "trained_on": [asdict(each) for each in (TrainedOn.of(dataset), *trained_before)],
            "config": config.to_json(),
            "crc32": {name: crc32_of(path / name) for name in (ITEMS, COUNTS, PROBES, METRICS)},
        },
    )


def _catalogue_item_column(dataset: Dataset) -> str | None:
    """Return the catalogue's column of ids, as prepared; None for a data set without a catalogue."""
    column = dataset.info.prepared.get("catalogue_item_column")
    return column if isinstance(column, str) else None


def write_evaluation(path: Path, split: str, values: dict[str, Any]) -> None:
    """Add one split's metrics to the run."""
    write_json(path / EVALUATION, {**_evaluation(path / EVALUATION), split: values})


def open_trained_on(run: Path, dataset: Path) -> Dataset:
    """Open the data set that a finished or unfinished training has recorded.

    Raises:
        DataError: it is missing or damaged.
    """
    if not dataset.is_dir():
        raise DataError(
            f"{run} was trained on {dataset}, which is not there; say with --data where it is now"
        )
    return Dataset.open(dataset)


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Turn an error while a file of a run is read into a RunError with the file's name."""
    try:
        yield file
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{file} is damaged, or of another run: {reason}. Train the run again.") from error


def _evaluation(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    with _reading(file):
        return dict(json.loads(file.read_text("utf-8")))


class Run:
    """A finished run, opened for reading."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.config = TrainConfig.from_json(facts["config"])
        self.num_items = int(facts["num_items"])
        self.best_epoch = int(facts["best_epoch"])
        self.dataset_path = Path(facts["dataset"])
        self.catalogue_item_column: str | None = facts.get("catalogue_item_column")
        self._started_from: str | None = facts.get("started_from")
        self._trained_on: list[TrainedOn] | None = None  # runs of earlier versions record nothing
        if "trained_on" in facts:
            self._trained_on = [TrainedOn(**each) for each in facts["trained_on"]]
        self._unverified: dict[str, int] = dict(facts.get("crc32", {}))  # runs of earlier versions have none

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open a finished run.

        Raises:
            RunError: the folder is missing, is not a run, or is not finished.
        """
        refuse_unfinished_run(path)
        with _reading(path / CONFIG):
            return cls(path, json.loads((path / CONFIG).read_text("utf-8")))

    def open_dataset(self, moved_to: Dataset | Path | str | None = None) -> Dataset:
        """Open the data set that the run was trained on.

        Args:
            moved_to: The data set, or its folder, where it has moved since training.

        Raises:
            DataError: it is missing or damaged, or another data set.
        """
        if moved_to is None:
            dataset = open_trained_on(self.path, self.dataset_path)
        else:
            dataset = moved_to if isinstance(moved_to, Dataset) else Dataset.open(Path(moved_to))
        self.check_dataset(dataset)
        return dataset

    def check_dataset(self, dataset: Dataset) -> None:
        """Refuse a data set whose items, or their order, are not those of the run.

        Raises:
            DataError: with both folders.
        """
        if not dataset.items()["item_id"].equals(self.items()["item_id"]):
            raise DataError(
                f"{dataset.path} is not the data set that {self.path} was trained on: their items differ."
                f" The run was trained on {self.dataset_path}."
            )

    def is_trained_on(self, dataset: Dataset) -> bool:
        """Return whether this is the data set of the run: the same items with the same training events."""
        return dataset.items()["item_id"].equals(self.items()["item_id"]) and np.array_equal(
            dataset.item_counts(), self.item_counts_N()
        )

    def trained_on(self) -> list[TrainedOn]:
        """Return the data sets of this training and of the runs that it was started from, newest
        first.

        For runs of earlier versions they are found by the recorded folders, as long as these hold
        the same training events.
        """
        chain: list[TrainedOn] = []
        visited: set[Path] = set()
        run = self
        while run._trained_on is None:
            chain.append(run._own_data())
            visited.add(run.path.resolve())
            if run._started_from is None:
                return chain
            if Path(run._started_from).resolve() in visited:  # folders of runs were renamed
                return [*chain, TrainedOn()]
            try:
                run = Run.open(Path(run._started_from))
            except RunError:
                return [*chain, TrainedOn()]
        return [*chain, *run._trained_on]

    def _own_data(self) -> TrainedOn:
        try:
            dataset = self.open_dataset()
        except DataError:
            return TrainedOn(dataset=str(self.dataset_path))
        return (
            TrainedOn.of(dataset)
            if self.is_trained_on(dataset)
            else TrainedOn(dataset=str(self.dataset_path))
        )

    def items(self) -> pl.DataFrame:
        """Return the catalogue in row order: `item_id` first, then its attributes."""
        with self._intact(ITEMS) as file:
            return pl.read_parquet(file, glob=False)

    def scan_items(self) -> pl.LazyFrame:
        """Return `items` lazily, for reading in pieces; read it once, so that damage is reported here."""
        with self._intact(ITEMS) as file:
            items = pl.scan_parquet(file, glob=False)
            for _ in items.collect_batches(maintain_order=False):
                pass
        return items

    def item_counts_N(self) -> NDArray[np.int64]:
        """Return the training events of each item, int64 [N], mapped from their file."""
        with self._intact(COUNTS) as file:
            return map_array(file)

    def probe_histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to 10,000 real histories of held-out users.

        Returns:
            rows_QL, int64, newest first, padded at the end with 0; lengths_Q, int64, at least 1.
        """
        with self._intact(PROBES) as file:
            arrays = read_arrays(file, ("rows_QL", "lengths_Q"))
            return arrays["rows_QL"], arrays["lengths_Q"]

    def evaluation(self) -> dict[str, Any]:
        """Return the metrics recorded so far, by split; empty where there are none."""
        return _evaluation(self.path / EVALUATION)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the record of each epoch: losses, speed and validation metrics."""
        with self._intact(METRICS) as file:
            return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    def load_model(self) -> MultiInterestModel:
        """Build the model around the best epoch's weights, on the CPU.

        They are mapped from their file: pages that are written to are copied, the others are not
        kept in memory.

        Raises:
            RunError: the weights are missing, damaged, or of another shape.
        """
        model = MultiInterestModel(self.config, self.num_items, to_be_loaded=True)
        with self._intact(WEIGHTS) as file:
            model.load_state_dict(read_tensors(file), assign=True)
        return model.eval()

    @contextmanager
    def _intact(self, name: str) -> Iterator[Path]:
        """Yield the path of a file that exists and has its recorded checksum, if it has one."""
        path = self.path / name
        if not path.exists():
            raise RunError(f"{path} is missing: the run is damaged. Train it again.")
        with _reading(path):
            if name in self._unverified and crc32_of(path) != self._unverified[name]:
                raise ValueError(f"its CRC-32 is not the one in {CONFIG}")
            self._unverified.pop(name, None)
            yield path
