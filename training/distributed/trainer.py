"""The training on several ranks, which is that of a single process but for where things are.

Ranks run the same loop over the same batches. Rank 0 writes and logs; all ranks write the rows of
their shards into weights and checkpoints.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from re4.common.errors import RunError, UsageError
from re4.training.config import AUTO, TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.distributed.checkpoint import (
    load_shards,
    newest_checkpoint,
    read_sharded_facts,
    remove_incomplete,
    save_shards,
)
from re4.training.distributed.collectives import on_first_rank, process_group, quieten_other_ranks, sums
from re4.training.distributed.evaluation import rank_shards
from re4.training.distributed.item_table import ItemTable
from re4.training.distributed.model import ShardedModel
from re4.training.distributed.optimiser import ITEM_RATE, ShardedOptimiser
from re4.training.distributed.weights import write_sharded_weights
from re4.training.evaluation.protocol import Ranking
from re4.training.kernels.precision import check_precision
from re4.training.model.model import Losses, MultiInterestModel
from re4.training.run.mlflow_tracking import check_mlflow, dataset_tags, start_tracking
from re4.training.run.run import Run, open_trained_on, write_metrics
from re4.training.run.run_folder import CONFIG, lock_run, new_run_folder
from re4.training.trainer.checkpoint import (
    CHECKPOINT,
    CHECKPOINTS,
    CheckpointFacts,
    Progress,
    check_unchanged,
    facts_to_json,
    load_state,
    state_tensors,
)
from re4.training.trainer.loop import (
    Trainer,
    TrainResult,
    choose_device,
    initial_vectors,
    resolve_and_log,
)
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.tensorboard import check_tensorboard

_log = logging.getLogger(__name__)


def train(
    dataset: Dataset,
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_minutes: float,
    tensorboard: bool = False,
    mlflow: bool = False,
) -> TrainResult:
    """Train a model on all ranks of this process group and leave a run at `out`.

    Where `out` has a checkpoint of the same training, it is continued: torchrun runs the same command
    again after a failure.

    Raises:
        Re4Error: as `re4.training.api.train`.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    quieten_other_ranks()
    if config.num_interests == AUTO:
        raise UsageError("--num-interests auto trains twice; under torchrun, give a number.")
    config = resolve_and_log(config, dataset)
    _check_supported(config, dataset)
    with _ranks(device, precision, tensorboard=tensorboard, mlflow=mlflow) as target:

        def begin() -> CheckpointFacts | TrainResult | None:
            if (out / CONFIG).exists():
                run = Run.open(out)
                if run.config == config and run.is_trained_on(dataset):
                    return TrainResult.of(run.metrics())  # a restart at the very end
            if (folder := newest_checkpoint(out)) is not None:
                facts = read_sharded_facts(folder)
                if facts.config == config:
                    check_unchanged(out, facts, dataset)
                    return facts
            remove_incomplete(out)
            new_run_folder(out)
            return None

        begun = on_first_rank(begin)
        if isinstance(begun, TrainResult):
            return begun
        return _run(dataset, config, out, begun, target, checkpoint_minutes, precision, tensorboard, mlflow)


def resume(
    run: Path,
    dataset: Dataset | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_minutes: float,
    tensorboard: bool = False,
    mlflow: bool = False,
) -> TrainResult:
    """Continue a training of some ranks, with the present number of ranks.

    Raises:
        Re4Error: as `re4.training.api.resume`.
        KeyboardInterrupt: as for `train`.
    """
    quieten_other_ranks()
    with _ranks(device, precision, tensorboard=tensorboard, mlflow=mlflow) as target:

        def read() -> CheckpointFacts:
            folder = newest_checkpoint(run)
            if folder is None and (run / CHECKPOINT).exists():
                raise RunError(
                    f"{run} was begun without torchrun, by another optimiser. Go on with: re4 resume {run}"
                )
            if folder is None:
                raise RunError(f"{run} holds no unfinished training of several ranks: it has no checkpoint.")
            return read_sharded_facts(folder)

        facts = on_first_rank(read)
        opened = dataset or open_trained_on(run, facts.dataset_path)
        _check_supported(facts.config, opened)
        on_first_rank(lambda: check_unchanged(run, facts, opened))
        return _run(
            opened, facts.config, run, facts, target, checkpoint_minutes, precision, tensorboard, mlflow
        )


def _check_supported(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse settings that cannot be trained on these ranks.

    Raises:
        UsageError: the model takes no steps, or there are too few items.
    """
    if config.initial_vectors in ("popularity", "fitted"):
        raise UsageError(
            f"--model {config.model} takes no training steps, and needs no ranks: train it without torchrun."
        )
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rows = -(-dataset.num_items // num_ranks)
    if rows * (num_ranks - 1) >= dataset.num_items:
        raise UsageError(
            f"{dataset.num_items:,} items leave no rows for some of {num_ranks} ranks. Use fewer."
        )


@contextmanager
def _ranks(device: str, precision: str, *, tensorboard: bool, mlflow: bool) -> Iterator[torch.device]:
    """Check the options, join the other ranks, and yield the device of this one."""
    check_precision(precision)
    target = choose_device(device)
    if tensorboard:
        check_tensorboard()
    if mlflow:
        check_mlflow()
    with process_group(target) as own:
        yield own


def _run(
    dataset: Dataset,
    config: TrainConfig,
    out: Path,
    facts: CheckpointFacts | None,
    device: torch.device,
    checkpoint_minutes: float,
    precision: str,
    tensorboard: bool,
    mlflow: bool,
) -> TrainResult:
    """Begin a training, or continue it from the facts of a checkpoint."""
    assert config.learning_rate is not None, "resolve comes first"
    items = ItemTable(
        dataset.num_items,
        config.embedding_dim,
        device=device,
        learning_rate=ITEM_RATE * config.learning_rate,
    )
    _log.info(
        f"{dist.get_world_size()} ranks: each holds {len(items.weight_nD):,} of {dataset.num_items:,} item "
        "vectors"
    )
    torch.manual_seed(config.seed)
    model = ShardedModel(config, items, device)
    if facts is None:
        if config.initial_vectors == "random":
            items.fill_randomly(config.seed)
        else:
            items.fill_from_first_rank(initial_vectors(config, dataset) if dist.get_rank() == 0 else None)
    with lock_run(out) if dist.get_rank() == 0 else nullcontext():
        if mlflow and dist.get_rank() == 0:
            start_tracking(out, config.to_json(), dataset_tags(dataset))
        training = ShardedTrainer(
            dataset,
            model,
            out,
            facts.progress if facts else Progress(),
            checkpoint_minutes,
            tensorboard,
            mlflow,
            precision,
        )
        if facts is not None:
            training.restore()
        return training.run()


class ShardedTrainer(Trainer):
    """A training in progress on several ranks, as seen from one of them."""

    _model: ShardedModel

    def new_optimiser(self, model: MultiInterestModel) -> Optimiser:
        """Make the optimiser of the encoder and of this rank's rows."""
        assert isinstance(model, ShardedModel)
        return ShardedOptimiser(model)

    def item_counts(self, config: TrainConfig) -> Tensor:
        """Return the training events of each item; for samplers that only use their number, no memory."""
        if config.negatives in ("in-batch", "mixed") or config.logit_adjustment:
            return super().item_counts(config)
        return torch.empty(self._dataset.num_items, device="meta")

    def loss_values(self, losses: Losses) -> dict[str, float]:
        """Return the losses of the whole batch."""
        if self._term_names is None:  # a rank without examples knows no terms
            self._term_names = on_first_rank(lambda: list(losses.terms))
        mine = {name: value.item() for name, value in {"total": losses.total, **losses.terms}.items()}
        names = ["total", *self._term_names]
        return dict(zip(names, sums([mine.get(name, 0.0) for name in names]), strict=True))

    _term_names: list[str] | None = None

    def agreed(self, must_stop: bool, must_save: bool) -> tuple[bool, bool]:
        """Return whether any rank has to stop, or to save."""
        stops, saves = sums([must_stop, must_save])
        return stops > 0, saves > 0

    def rank(self, model: MultiInterestModel, title: str) -> Ranking:
        """Rank each rank's rows for the validation users, and merge the lists."""
        assert isinstance(model, ShardedModel)
        return rank_shards(model, self.valid, title=title)

    def write_weights(self, model: MultiInterestModel) -> None:
        """Write the rows of each rank into one file."""
        assert isinstance(model, ShardedModel)
        write_sharded_weights(self._out, model)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the records from rank 0."""
        write = super().write_record
        on_first_rank(lambda: write(record))

    def finish(self) -> None:
        """Complete the run from rank 0, and remove the checkpoints."""
        finish = super().finish

        def complete() -> None:
            finish()
            shutil.rmtree(self._out / CHECKPOINTS)

        on_first_rank(complete)

    def has_checkpoint(self) -> bool:
        """Return whether there is a complete checkpoint."""
        return newest_checkpoint(self._out) is not None

    def restore(self) -> None:
        """Continue from the newest checkpoint."""
        self._recalls = self.read_state()
        on_first_rank(lambda: write_metrics(self._out, self._progress.records))

    def read_state(self) -> dict[str, Tensor]:
        """Load the state of this rank; return the recalls."""
        folder = on_first_rank(lambda: newest_checkpoint(self._out))
        assert folder is not None, "there is a checkpoint"
        present = state_tensors(self._model, self._optimiser, self._mean, {})
        loaded = load_shards(folder, present, self._dataset.num_items)
        try:
            return load_state(loaded, self._model, self._optimiser, self._mean)
        except (RuntimeError, KeyError) as error:
            raise RunError(f"{folder} does not fit its own configuration: {error}") from error

    def save(self) -> None:
        """Save the state of all ranks."""
        config, progress = self._model.config, self._progress
        facts = facts_to_json(config, progress, self._dataset) if dist.get_rank() == 0 else {}
        tensors = state_tensors(self._model, self._optimiser, self._mean, self._recalls)
        save_shards(self._out, tensors, facts, self._dataset.num_items)
