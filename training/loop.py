"""The training loop: epochs of shuffled batches, validation after each, the best epoch kept.

It knows the model only by `losses` and the data only by batches.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from re4.console import progress, say
from re4.errors import TrainingError
from training.batches import TrainingBatches
from training.config import TrainConfig
from training.data.dataset import Dataset
from training.evaluation import Evaluation, evaluate
from training.initial_vectors import svd_item_vectors
from training.model import MultiInterestModel
from training.optimiser import Optimiser
from training.run import finish_run, new_run_folder, write_metrics_line, write_weights


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished training came to."""

    best_epoch: int
    num_epochs: int
    seconds_per_epoch: float
    """Mean time of an epoch's steps, without validation."""
    examples_per_second: float
    valid: Evaluation
    """Validation metrics of the best epoch."""


def choose_device(name: str) -> torch.device:
    """Turn auto, cpu or cuda into a device, and say which and why.

    Raises:
        TrainingError: where cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise TrainingError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if available else "cpu"
        say(f"device: {name} ({'a CUDA device was found' if available else 'no CUDA device was found'})")
    return torch.device(name)


def train(dataset: Dataset, config: TrainConfig, out: Path, *, device: str = "auto") -> TrainResult:
    """Train a model and leave a run at `out`.

    The epoch with the highest validation Recall@50 (history left in the list) is the one kept.

    Raises:
        RunError: where `out` is not an empty or new folder.
        DataError: where there is nothing to learn from or to validate on.
        TrainingError: where a loss is not finite, or the device is missing.
    """
    target = choose_device(device)
    config = config.resolve(dataset.num_items)
    batches = TrainingBatches(
        dataset.train,
        max_history_length=config.max_history_length,
        batch_size=config.batch_size,
        history_dropout=config.history_dropout,
    )
    new_run_folder(out)
    torch.manual_seed(config.seed)
    model = MultiInterestModel(config, dataset.num_items)
    if config.initial_vectors == "svd":
        model.start_from(
            svd_item_vectors(
                dataset.train,
                dataset.num_items,
                config.embedding_dim,
                torch.Generator().manual_seed(config.seed),
            )
        )
    model.to(target)
    generator = torch.Generator(device=target).manual_seed(config.seed)
    order = np.random.default_rng(config.seed)
    optimiser = Optimiser(model)

    best: Evaluation | None = None
    best_epoch = 0
    seconds: list[float] = []
    for epoch in range(1, config.num_epochs + 1):
        started = time.perf_counter()
        losses = _train_epoch(model, batches, optimiser, order, generator, title=f"epoch {epoch}")
        seconds.append(time.perf_counter() - started)
        valid = evaluate(model, dataset.valid, exclude_history=False, title=f"epoch {epoch} validation")
        is_best = best is None or valid.recall_50 > best.recall_50
        if is_best:
            best, best_epoch = valid, epoch
            write_weights(out, model)
        say(
            f"epoch {epoch:>3}  loss {losses['total']:.4f}  validation Recall@50 {valid.recall_50:.4f}"
            f"  {batches.num_examples / seconds[-1]:,.0f} examples/s{'  *' if is_best else ''}"
        )
        write_metrics_line(
            out,
            {
                "epoch": epoch,
                "seconds": round(seconds[-1], 3),
                "examples_per_second": round(batches.num_examples / seconds[-1], 1),
                "losses": losses,
                "valid": valid.to_json(),
            },
        )
        if epoch - best_epoch >= config.patience:
            say(f"no better epoch since {best_epoch}: stopping")
            break
    assert best is not None  # there is at least one epoch
    finish_run(out, config=config, dataset=dataset, best_epoch=best_epoch, evaluation=best.to_json())
    mean_seconds = sum(seconds) / len(seconds)
    return TrainResult(
        best_epoch=best_epoch,
        num_epochs=len(seconds),
        seconds_per_epoch=mean_seconds,
        examples_per_second=batches.num_examples / mean_seconds,
        valid=best,
    )


def _train_epoch(
    model: MultiInterestModel,
    batches: TrainingBatches,
    optimiser: Optimiser,
    order: np.random.Generator,
    generator: torch.Generator,
    *,
    title: str,
) -> dict[str, float]:
    """Take one step for each batch; give the mean of the total loss and of each of its terms."""
    device = model.item_embedding.weight.device
    sums: dict[str, float] = defaultdict(float)
    with progress(title, batches.num_examples) as bar:
        for batch in batches.epoch(order):
            losses = model.losses(batch.to(device), generator)
            total = losses.total.item()
            if not np.isfinite(total):
                terms = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.terms.items())
                raise TrainingError(
                    f"The loss is {total} ({title}): {terms}. Lower --learning-rate, or the weight of the "
                    "term that is not finite."
                )
            optimiser.step(losses)
            num_examples = len(batch.targets_B)
            sums["total"] += total * num_examples
            for name, value in losses.terms.items():
                sums[name] += value.item() * num_examples
            bar.advance(num_examples)
            bar.note(f"loss {total:.3f}")
    return {name: value / batches.num_examples for name, value in sums.items()}
