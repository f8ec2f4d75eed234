"""Checkpoints: the whole state of a training in one file, replaced atomically.

The random numbers of a step are drawn from a seed made of (run's seed, epoch, step), so no
generator's state is saved: the weights, their mean, the optimiser's moments and the place in the
epoch suffice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from re4 import __version__
from re4.common.errors import DataError, RunError
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.model.model import MultiInterestModel
from re4.training.run.tensor_files import facts_of, read_tensors, write_tensors
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.weight_averaging import WeightAverage

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINTS = "checkpoints"
"""The folder of a training on several ranks (`training/distributed/checkpoint.py`)."""


@dataclass(kw_only=True)
class Progress:
    """The progress of a training."""

    epoch: int = 1
    """Number of the current epoch, from 1."""
    step: int = 0
    """Completed steps of it."""
    seconds: float = 0.0
    """Duration of these steps."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over their targets."""
    num_targets: int = 0
    """Targets of these steps."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """A record of each completed epoch, as in `metrics.jsonl`."""
    started_from: str | None = None
    """The earlier run of a warm start."""
    trained_before: list[dict[str, Any]] | None = None
    """The data sets of the earlier runs, as `TrainedOn`; None in checkpoints of earlier versions."""
    precision: str = "auto"
    """float32 or bf16; auto before the training begins."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The metadata of a checkpoint, readable without its tensors."""

    config: TrainConfig
    dataset_path: Path
    dataset_checksums: dict[str, int]
    """As `Dataset.checksums`; empty in a checkpoint of an earlier version."""
    progress: Progress


def save_checkpoint(
    run: Path,
    *,
    model: MultiInterestModel,
    optimiser: Optimiser,
    mean: WeightAverage | None,
    progress: Progress,
    recalls: Mapping[str, Tensor],
    dataset: Dataset,
) -> None:
    """Replace the run's checkpoint by the present state.

    `recalls` has the validation Recall@50 of each user, float64 [U], of the start and of the best
    epoch.
    """
    facts = facts_to_json(model.config, progress, dataset)
    write_tensors(run / CHECKPOINT, state_tensors(model, optimiser, mean, recalls), facts)


def state_tensors(
    model: MultiInterestModel,
    optimiser: Optimiser,
    mean: WeightAverage | None,
    recalls: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return all tensors of a state by name, without copies."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimiser.{name}": value for name, value in optimiser.state().items()}
    tensors |= {f"mean.{name}": value for name, value in (mean.state() if mean else {}).items()}
    return tensors | {f"recall.{name}": value for name, value in recalls.items()}


def facts_to_json(config: TrainConfig, progress: Progress, dataset: Dataset) -> dict[str, Any]:
    """Return the metadata of a checkpoint as a JSON object."""
    return {
        "code_version": __version__,
        "config": config.to_json(),
        "dataset": str(dataset.path.resolve()),
        "dataset_checksums": dataset.checksums,
        "progress": asdict(progress),
    }


def read_facts(run: Path) -> CheckpointFacts:
    """Read the metadata of the run's checkpoint.

    Raises:
        RunError: where there is none, or it is damaged.
    """
    path = run / CHECKPOINT
    if (run / CHECKPOINTS).exists():
        raise RunError(
            f"{run} was begun under torchrun, with another optimiser. Go on with: "
            f"torchrun --nproc-per-node 1 --no-python re4 resume {run}"
        )
    if not path.exists():
        raise RunError(
            f"{run} holds no unfinished training ({CHECKPOINT} is missing): it is finished, or never began. "
            "Start one: re4 train DATA --out RUN"
        )
    try:
        return facts_from_json(facts_of(path))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}. Train again, to another --out.") from error


def facts_from_json(facts: Mapping[str, Any]) -> CheckpointFacts:
    """Read the metadata of a checkpoint.

    Raises:
        ValueError, KeyError, TypeError: where they are damaged.
    """
    return CheckpointFacts(
        config=TrainConfig.from_json(facts["config"]),
        dataset_path=Path(facts["dataset"]),
        dataset_checksums=dict(facts.get("dataset_checksums", {})),
        progress=Progress(**facts["progress"]),
    )


def check_unchanged(run: Path, facts: CheckpointFacts, dataset: Dataset) -> None:
    """Refuse a data set that is not the one with which the training began.

    Raises:
        DataError: naming the parts that differ.
    """
    checksums = dataset.checksums if facts.dataset_checksums else {}
    if changed := [name for name, value in checksums.items() if facts.dataset_checksums.get(name) != value]:
        raise DataError(
            f"{dataset.path} is not the data set with which the training of {run} began: other "
            f"{', '.join(changed)}. Put that one back, or say with --data where it is now; to train on this "
            f"one, begin anew: re4 train {dataset.path} --out RUN"
        )


def restore(
    run: Path, model: MultiInterestModel, optimiser: Optimiser, mean: WeightAverage | None
) -> dict[str, Tensor]:
    """Load the weights, their mean and the optimiser's moments from the run's checkpoint.

    Returns:
        The recalls that `save_checkpoint` was given; none in a checkpoint of an earlier version.

    Raises:
        RunError: where they are damaged, or do not fit.
    """
    try:
        tensors = read_tensors(run / CHECKPOINT)
    except ValueError as error:
        raise RunError(f"{run / CHECKPOINT} is damaged: {error}. Train again, to another --out.") from error
    try:
        return load_state(tensors, model, optimiser, mean)
    except (RuntimeError, KeyError) as error:
        raise RunError(f"{run / CHECKPOINT} does not fit its own configuration: {error}") from error


def load_state(
    tensors: Mapping[str, Tensor], model: MultiInterestModel, optimiser: Optimiser, mean: WeightAverage | None
) -> dict[str, Tensor]:
    """Load what `state_tensors` returned; return the recalls in it.

    Raises:
        RuntimeError, KeyError: where they do not fit.
    """
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimiser": {}, "mean": {}, "recall": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    model.load_state_dict(parts["model"])
    optimiser.restore(parts["optimiser"])
    if mean:
        mean.restore(parts["mean"])
    # Copied, because they are views of the mapped checkpoint, which is replaced.
    return {name: value.clone() for name, value in parts["recall"].items()}


def remove_checkpoint(run: Path) -> None:
    """Remove the checkpoint of a finished training."""
    (run / CHECKPOINT).unlink(missing_ok=True)
