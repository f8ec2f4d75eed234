"""The training loop: epochs of shuffled batches, a validation after each, the best epoch saved.

A step: a batch (`data/batches.py`), its negatives (`samplers/`), the losses and their gradients
(`model/model.py`), the update (`optimiser.py`). The loop also makes the model and its initial item
vectors, saves checkpoints, evaluates, and writes the run.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from re4.common.console import progress as progress_bar
from re4.common.errors import TrainingError
from re4.training.config import AUTO, CHECKPOINT_MINUTES, TrainConfig
from re4.training.data.batches import TrainingBatches, WindowBatches
from re4.training.data.dataset import Dataset
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import Evaluation, Ranking, rank, recall_50_U, summarise
from re4.training.evaluation.run_evaluation import match_items, rank_matched, unseen_part
from re4.training.kernels import has_kernels
from re4.training.kernels.precision import arithmetic, check_precision, is_bf16
from re4.training.model.attribute_values import attribute_values
from re4.training.model.attributes import AttributeEffects
from re4.training.model.model import Losses, MultiInterestModel
from re4.training.run.mlflow_tracking import (
    check_mlflow,
    dataset_tags,
    end_tracking,
    start_tracking,
    track_epoch,
)
from re4.training.run.run import (
    Run,
    finish_run,
    open_trained_on,
    write_evaluation,
    write_metrics,
    write_weights,
)
from re4.training.run.run_folder import lock_run, new_run_folder
from re4.training.run.trained_on import TrainedOn
from re4.training.samplers import build_sampler
from re4.training.trainer.allocator import keep_freed_memory
from re4.training.trainer.checkpoint import (
    CHECKPOINT,
    Progress,
    check_unchanged,
    read_facts,
    remove_checkpoint,
    restore,
    save_checkpoint,
)
from re4.training.trainer.embedding_init import popularity_vectors, svd_item_vectors
from re4.training.trainer.linear_models import fit_linear_model
from re4.training.trainer.loss_guard import check_losses
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.signals import stop_requested
from re4.training.trainer.tensorboard import check_tensorboard, figures_of, write_events
from re4.training.trainer.warm_start import check_compatible, warm_start
from re4.training.trainer.weight_averaging import WeightAverage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a finished training."""

    best_epoch: int
    """The epoch whose weights the run holds, from 1; 0 for the weights that training starts from."""
    num_epochs: int
    """Epochs that were trained."""
    seconds_per_epoch: float
    """Mean time of an epoch's steps, without validation."""
    examples_per_second: float
    """Training examples in a second of those steps."""
    valid: Evaluation
    """Validation metrics of the best epoch."""
    valid_half_width: float | None
    """Half of the 95 % interval, over users, of its Recall@50; None for a single user."""
    over_start: Interval | None
    """Its Recall@50 minus that of the start (epoch 0), paired by user; None where nothing was trained, or the
    training began with an earlier version."""

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> Self:
        """Return the outcome by the records of all epochs, as in `metrics.jsonl`."""
        best, num_epochs = _best(records), int(records[-1]["epoch"])
        seconds = sum(record["seconds"] for record in records)
        num_examples = sum(record["seconds"] * record["examples_per_second"] for record in records)
        over_start = best.get("over_start")
        return cls(
            best_epoch=best["epoch"],
            num_epochs=num_epochs,
            seconds_per_epoch=seconds / max(1, num_epochs),
            examples_per_second=num_examples / seconds if seconds else 0.0,
            valid=Evaluation.from_json(best["valid"]),
            valid_half_width=best.get("recall_50_half_width"),
            over_start=over_start and Interval(**over_start),
        )

    @property
    def doubt(self) -> str:
        """A sentence that training did not help, or may not have; empty where it did."""
        if self.over_start is None or not self.num_epochs or self.over_start.is_above_zero:
            return ""
        users = f"{self.valid.num_users:,} validation users"
        if self.best_epoch == 0:
            return (
                f"Training did not help: on {users} no epoch found more than the start, which the run keeps. "
                "Try a lower --learning-rate, or more events."
            )
        return (
            f"Training may not have helped: on {users} the kept epoch is ahead of the start by "
            f"{self.over_start} in Recall@50, which is within the 95 % interval."
        )


def _best(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(records, key=lambda record: float(record["valid"]["recall_50"]))


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda; log the choice and its reason.

    Raises:
        TrainingError: cuda is requested, and PyTorch finds none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainingError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if available else "cpu"
        _log.info(
            f"device: {name} ({'a CUDA device was found' if available else 'no CUDA device was found'})"
        )
    if name == "cpu" and not has_kernels():
        _log.info("training without C kernels, which is slower: no C compiler (cc, or $CC), or RE4_NATIVE=0")
    return torch.device(name)


def resolve_and_log(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Fill in the open settings for a data set; log those that its events decide.

    Raises:
        UsageError: as `TrainConfig.resolve`.
    """
    resolved = config.resolve(dataset.num_items, dataset.events_per_user)
    if config.model == AUTO:
        _log.info(
            f"--model auto: {resolved.model}, because users have {dataset.events_per_user:.0f} training "
            "events on average"
        )
    if config.next_n is None and resolved.next_n != 1:
        _log.info(
            f"target: one of the next {resolved.next_n} events, because users have "
            f"{dataset.events_per_user:.0f} training events on average (--next-n)"
        )
    return resolved


def new_model(config: TrainConfig, dataset: Dataset) -> MultiInterestModel:
    """Make the model of a data set, with random weights.

    Raises:
        UsageError: as `attribute_values`.
    """
    attributes = None
    if config.attributes:
        values = attribute_values(dataset.items(), config.attributes)
        _log.info(
            f"attributes: {values.num_weights - 1:,} values; {len(np.unique(values.owners_E)):,} of "
            f"{dataset.num_items:,} items have one"
        )
        attributes = AttributeEffects(values, dataset.item_counts(), config.embedding_dim)
    return MultiInterestModel(config, dataset.num_items, attributes=attributes)


def initial_vectors(config: TrainConfig, dataset: Dataset) -> Tensor | None:
    """Return the item vectors [N, D] that the log decides; None for random ones, and for fitted ones."""
    if config.initial_vectors == "popularity":
        return popularity_vectors(torch.from_numpy(dataset.item_counts()), config.embedding_dim)
    if config.initial_vectors == "svd":
        generator = torch.Generator().manual_seed(config.seed)
        return svd_item_vectors(dataset.train, dataset.num_items, config.embedding_dim, generator)
    return None


def train(
    dataset: Dataset,
    config: TrainConfig,
    out: Path,
    *,
    previous: Run | None = None,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    tensorboard: bool = False,
    mlflow: bool = False,
) -> TrainResult:
    """Train a model and leave a run at `out`; `re4.training.api.train` describes the arguments.

    The epoch with the highest validation Recall@50 (history left in the list) is saved; epoch 0 is
    the start. The state is saved before the first step, after every epoch and every
    `checkpoint_minutes`; `resume`
    continues a training that was killed at any moment. An earlier run, `previous`, makes a warm
    start (`warm_start.py`), and is evaluated on the same users.

    Raises:
        Re4Error: as `re4.training.api.train`.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    check_precision(precision)
    target = choose_device(device)
    if tensorboard:
        check_tensorboard()
    if mlflow:
        check_mlflow()
    config = resolve_and_log(config, dataset)
    torch.manual_seed(config.seed)
    model = new_model(config, dataset)
    if (vectors_ND := initial_vectors(config, dataset)) is not None:
        model.set_item_vectors(vectors_ND)
    progress = Progress()
    if config.initial_vectors == "fitted":
        started = time.perf_counter()
        fit_linear_model(model, dataset)
        progress.seconds = time.perf_counter() - started
    if previous is not None:
        check_compatible(config, previous.config)
        rows_N = match_items(dataset, previous)
        warm_start(model, previous.load_model(), rows_N)
        progress.started_from = str(previous.path.resolve())
        progress.trained_before = [asdict(each) for each in previous.trained_on()]
    training = Trainer(
        dataset, model.to(target), out, progress, checkpoint_minutes, tensorboard, mlflow, precision
    )
    new_run_folder(out)
    with lock_run(out):
        if mlflow:
            start_tracking(out, config.to_json(), dataset_tags(dataset))
        if previous is not None:
            ranking = rank_matched(
                previous, rows_N, training.valid, exclude_history=False, title="the earlier run"
            )
            before = summarise(ranking, training.valid, dataset.num_items)
            write_evaluation(out, "valid_by_previous_run", before.to_json())
            num_known = np.count_nonzero(rows_N >= 0)
            _log.info(
                f"{num_known:,} of {len(rows_N):,} items are known to {previous.path}; on the same users "
                f"its validation Recall@50 is {before.recall_50:.4f}"
            )
        return training.run()


def resume(
    run: Path,
    dataset: Dataset | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    tensorboard: bool = False,
    mlflow: bool = False,
) -> TrainResult:
    """Continue a training that was stopped or killed; `re4.training.api.resume` describes the arguments.

    On a CPU, with as many threads as before, it ends with the bytes of an uninterrupted training.
    The number of threads decides which users re-contrast pairs.

    Raises:
        Re4Error: as `re4.training.api.resume`.
        KeyboardInterrupt: as for `train`.
    """
    check_precision(precision)
    with lock_run(run):
        facts = read_facts(run)
        dataset = dataset or open_trained_on(run, facts.dataset_path)
        check_unchanged(run, facts, dataset)
        model = new_model(facts.config, dataset).to(choose_device(device))
        if tensorboard:
            check_tensorboard()
        if mlflow:
            check_mlflow()
            start_tracking(run, facts.config.to_json(), dataset_tags(dataset))
        training = Trainer(
            dataset, model, run, facts.progress, checkpoint_minutes, tensorboard, mlflow, precision
        )
        training.restore()
        return training.run()


class Trainer:
    """A training in progress: the model, its optimiser and its progress.

    The methods from `new_optimiser` on are those that a training on several ranks replaces
    (`training/distributed/`).
    """

    def __init__(
        self,
        dataset: Dataset,
        model: MultiInterestModel,
        out: Path,
        progress: Progress,
        checkpoint_minutes: float,
        tensorboard: bool,
        mlflow: bool,
        precision: str,
    ) -> None:
        keep_freed_memory()
        config = model.config
        self.valid = unseen_part(
            [TrainedOn(**each) for each in progress.trained_before or []], dataset, "valid"
        )[0]
        if progress.records and progress.records[-1]["valid"]["num_users"] != self.valid.num_users:
            raise TrainingError(
                f"{out} was validated on {progress.records[-1]['valid']['num_users']:,} users, now there are "
                f"{self.valid.num_users:,}: the data set of an earlier run is gone or has changed. Put it "
                "back, or train again, to another --out."
            )
        self._dataset, self._model, self._out, self._progress = dataset, model, out, progress
        self._checkpoint_s = 60 * checkpoint_minutes
        self._tensorboard, self._mlflow = tensorboard, mlflow
        self._is_bf16 = is_bf16(
            progress.precision if precision == "auto" else precision, model.item_embedding.weight.device
        )
        progress.precision = "bf16" if self._is_bf16 else "float32"
        self._recalls: dict[str, Tensor] = {}  # by user, of the start and of the best epoch
        self._optimiser = self.new_optimiser(model)
        self._mean = WeightAverage(model, config.averaging) if config.averaging else None
        batches = WindowBatches if config.every_position else TrainingBatches
        self._batches = batches(
            dataset.train,
            max_history_length=config.L,
            batch_size=config.batch_size,
            history_dropout=config.history_dropout or 0.0,
            next_n=config.next_n or 1,
        )
        self._sampler = build_sampler(
            config.negatives,
            config.num_negatives,
            self.item_counts(config),
            logit_adjustment=config.logit_adjustment,
        )

    def restore(self) -> None:
        """Continue from the checkpoint."""
        self._recalls = self.read_state()
        write_metrics(self._out, self._progress.records)
        if not self._progress.num_targets:  # a checkpoint of an earlier version
            done = self._progress.step * self._model.config.batch_size
            self._progress.num_targets = min(done, self._batches.num_examples)

    def run(self) -> TrainResult:
        """Train to the end.

        Raises:
            TrainingError: a loss has failed, or the disk is full.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
        """
        try:
            return self._run()
        except OSError as error:
            can_go_on = self.has_checkpoint()
            how = f"go on with: re4 resume {self._out}" if can_go_on else "train again, to another --out"
            raise TrainingError(
                f"Training stopped in epoch {self._progress.epoch}: {error}. Put that right, then {how}"
            ) from error

    def _run(self) -> TrainResult:
        config, progress = self._model.config, self._progress
        if not self.has_checkpoint():
            self.save()  # so that a training killed within the first minutes can be resumed
        if not progress.records and (progress.epoch, progress.step) == (1, 0):
            progress.epoch = 0  # the initial weights are a candidate as well
            self._close_epoch()
        with stop_requested() as is_stopped:
            while progress.epoch <= config.num_epochs and not self._has_stalled():
                self._train_epoch(is_stopped)
                self._close_epoch()
        self.finish()
        return TrainResult.of(progress.records)

    def _best_record(self) -> dict[str, Any]:
        return _best(self._progress.records)

    def _has_stalled(self) -> bool:
        if not self._progress.records:
            return False
        best_epoch = int(self._best_record()["epoch"])
        # With few validation users, an epoch can be behind by chance alone: it counts half.
        waited = sum(
            1.0 if record.get("is_behind", True) else 0.5
            for record in self._progress.records
            if record["epoch"] > best_epoch
        )
        has_stalled = waited >= self._model.config.patience
        if has_stalled:
            _log.info(f"no better epoch since {best_epoch}: stopping")
        return has_stalled

    def _train_epoch(self, is_stopped: Callable[[], bool]) -> None:
        """Run the remaining steps of the epoch."""
        progress, seed = self._progress, self._model.config.seed
        device = self._model.item_embedding.weight.device
        generator = torch.Generator(device=device)
        saved = started = time.perf_counter()
        seconds_before = progress.seconds
        with progress_bar(f"epoch {progress.epoch}", self._batches.num_examples) as bar:
            bar.advance(min(progress.step * self._model.config.batch_size, self._batches.num_examples))
            for batch in self._batches.epoch([seed, progress.epoch], first_step=progress.step):
                generator.manual_seed(_step_seed(seed, progress.epoch, progress.step))
                batch = batch.to(device)
                negatives = self._sampler.draw(generator, batch.targets_B)
                with arithmetic(device, bf16=self._is_bf16):
                    losses = self._model.losses(batch, negatives, generator)
                values = self.loss_values(losses)
                check_losses(
                    values,
                    batch,
                    negatives,
                    progress=progress,
                    config=self._model.config,
                    run=self._out,
                )
                self._optimiser.step(losses, rate=self._rate())
                num_examples = len(batch.targets_B)
                progress.num_targets += num_examples
                for name, value in values.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value * num_examples
                progress.step += 1
                if self._mean:
                    self._mean.after_step(self._model, progress.step, self._batches.num_steps)
                now = time.perf_counter()
                progress.seconds = seconds_before + now - started
                bar.advance(num_examples)
                bar.note(f"loss {values['total']:.3f}")
                must_stop, must_save = self.agreed(is_stopped(), now - saved >= self._checkpoint_s)
                if must_stop:
                    self.save()
                    _log.info(f"stopped in epoch {progress.epoch}; go on with: re4 resume {self._out}")
                    raise KeyboardInterrupt
                if must_save:
                    self.save()
                    saved = now

    def _rate(self) -> float:
        """Return the share of the learning rate that the warm-up allows at the present step."""
        num_steps = self._model.config.warm_up * self._batches.num_steps
        done = (self._progress.epoch - 1) * self._batches.num_steps + self._progress.step
        return min(1.0, (done + 1) / num_steps) if num_steps else 1.0

    def _close_epoch(self) -> None:
        """Validate, save the weights of a best epoch, record the epoch, and save the state."""
        progress = self._progress
        epoch, num_targets = progress.epoch, max(1, progress.num_targets)
        model = self._mean.model if self._mean else self._model
        title = f"epoch {epoch} validation"
        ranking = self.rank(model, title)
        valid = summarise(ranking, self.valid, self._dataset.num_items)
        recall_U = torch.from_numpy(recall_50_U(ranking, self.valid))
        half_width = Interval.of(recall_U.numpy()).half_width
        if epoch == 0:
            self._recalls["start"] = recall_U
        over_start, over_best = (
            Interval.of((recall_U - self._recalls[name]).numpy()) if name in self._recalls else None
            for name in ("start", "best")
        )
        record: dict[str, Any] = {
            "epoch": epoch,
            "seconds": round(progress.seconds, 3),
            "examples_per_second": round(self._examples_per_second(progress.seconds), 1),
            "losses": {name: value / num_targets for name, value in progress.sums.items()},
            "valid": valid.to_json(),
            "recall_50_half_width": half_width,
            "over_start": over_start and asdict(over_start),
            "is_behind": over_best is None or over_best.is_below_zero,
        }
        progress.records.append(record)
        is_best = self._best_record() is record
        if is_best:
            self._recalls["best"] = recall_U.clone()  # a file of tensors refuses shared memory
            self.write_weights(model)
        trained = f"loss {record['losses']['total']:.4f}  " if epoch else "the start  "
        width = "" if half_width is None else f" ± {half_width:.4f}"
        speed = f"  {record['examples_per_second']:,.0f} examples/s" if epoch else ""
        apart = ""
        if valid.interests is not None and self._model.config.K > 1:
            apart = (
                f"  interests: {valid.interests.effective_interests:.1f} effective, overlap "
                f"{valid.interests.interest_overlap:.2f}, cosine {valid.interest_cosine:.2f}"
            )
        star = "  *" if is_best else ""
        recall = f"validation Recall@50 {valid.recall_50:.4f}{width}"
        _log.info(f"epoch {epoch:>3}  {trained}{recall}{apart}{speed}{star}")
        self.write_record(record)
        progress.epoch, progress.step, progress.num_targets = epoch + 1, 0, 0
        progress.seconds, progress.sums = 0.0, {}
        self.save()

    def _examples_per_second(self, seconds: float) -> float:
        return self._batches.num_examples / seconds if seconds else 0.0

    def new_optimiser(self, model: MultiInterestModel) -> Optimiser:
        """Make the optimiser of a model."""
        return Optimiser(model)

    def item_counts(self, config: TrainConfig) -> Tensor:
        """Return the training events of each item, for the sampler."""
        return torch.from_numpy(self._dataset.item_counts())

    def loss_values(self, losses: Losses) -> dict[str, float]:
        """Return the total loss of a step and its terms."""
        return {name: value.item() for name, value in {"total": losses.total, **losses.terms}.items()}

    def agreed(self, must_stop: bool, must_save: bool) -> tuple[bool, bool]:
        """Return whether the training stops, and whether it saves its state, after this step."""
        return must_stop, must_save

    def rank(self, model: MultiInterestModel, title: str) -> Ranking:
        """Rank the catalogue for the validation users."""
        return rank(model, self.valid, exclude_history=False, title=title)

    def write_weights(self, model: MultiInterestModel) -> None:
        """Write the weights of the best epoch so far into the run."""
        write_weights(self._out, model)

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the records of all epochs; `record` is the newest."""
        write_metrics(self._out, self._progress.records)
        if self._tensorboard:
            write_events(self._out, [record])
        if self._mlflow:
            track_epoch(self._out, figures_of(record), record["epoch"])

    def finish(self) -> None:
        """Complete the run, and remove its checkpoint."""
        best, progress = self._best_record(), self._progress
        trained_before = progress.trained_before
        if trained_before is None:  # a checkpoint of an earlier version
            trained_before = [asdict(TrainedOn())] if progress.started_from else []
        finish_run(
            self._out,
            config=self._model.config,
            dataset=self._dataset,
            best_epoch=best["epoch"],
            evaluation=Evaluation.from_json(best["valid"]).to_json(),
            started_from=progress.started_from,
            trained_before=[TrainedOn(**each) for each in trained_before],
        )
        remove_checkpoint(self._out)
        if self._mlflow:
            end_tracking(self._out)

    def has_checkpoint(self) -> bool:
        """Return whether there is a state to continue from."""
        return (self._out / CHECKPOINT).exists()

    def read_state(self) -> dict[str, Tensor]:
        """Load the state from the checkpoint; return the recalls in it."""
        return restore(self._out, self._model, self._optimiser, self._mean)

    def save(self) -> None:
        """Replace the checkpoint by the present state."""
        save_checkpoint(
            self._out,
            model=self._model,
            optimiser=self._optimiser,
            mean=self._mean,
            progress=self._progress,
            recalls=self._recalls,
            dataset=self._dataset,
        )


def _step_seed(seed: int, epoch: int, step: int) -> int:
    """Return the seed of one step, 63 bits, made of the run's seed and the place in the training alone."""
    return int(np.random.SeedSequence([seed, epoch, step + 1]).generate_state(1, np.uint64)[0] >> 1)
