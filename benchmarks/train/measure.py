"""Training steps timed whole: input pipeline, losses, gradients and optimiser.

Synthetic sequences are as long as those of Amazon Books (five events and more, 14.7 on average), with items
drawn by popularity. A plain matrix product alternates with the steps, so that figures of two machines, or of
two hours, can be compared. So does a textbook step, on the same examples and negatives: other work on the
machine slows all of them.
"""

import resource
import time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.train.options import PRESETS, TrainOptions
from re4.benchmarks.train.textbook_step import textbook_training
from re4.common.console import progress
from re4.training.config import TrainConfig
from re4.training.data.batches import TrainingBatches
from re4.training.data.dataset import Dataset, Sequences
from re4.training.kernels.precision import arithmetic, is_bf16
from re4.training.model.model import MultiInterestModel
from re4.training.samplers import build_sampler
from re4.training.trainer.allocator import keep_freed_memory
from re4.training.trainer.optimiser import Optimiser

_MIN_EVENTS: Final = 5
_MEAN_EVENTS: Final = 14.7
_WARMUP_STEPS: Final = 3


def measure(options: TrainOptions) -> dict[str, Any]:
    """Take some steps and time them.

    Returns:
        Medians over steps. `input_share` is the part of a step's time that went into gathering its
        examples; `matmul_gflops` the speed of a float32 product of two 2048 x 2048 matrices; `owed_gflop` the
        arithmetic of one step's matrix products, forward and backward, padding not counted, and
        `floor_examples_per_second` the examples that it would allow at that speed; `peak_memory_bytes` is of
        the whole process. `textbook` has `ratio`, the mean over pairs of steps of its time as a multiple of
        ours, and half of the 95 % interval; None without one.
    """
    dataset = Dataset.open(options.data) if options.data else None
    num_items = dataset.num_items if dataset else options.num_items
    config = TrainConfig(**PRESETS[options.preset]).resolve(num_items)
    keep_freed_memory()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    num_examples = config.batch_size * (options.num_steps + _WARMUP_STEPS + 1)
    batches = TrainingBatches(
        dataset.train if dataset else _sequences(num_examples, num_items, is_full=options.full_histories),
        max_history_length=config.L,
        batch_size=config.batch_size,
        history_dropout=config.history_dropout or 0.0,
    )
    torch.manual_seed(0)
    model = MultiInterestModel(config, num_items)
    optimiser = Optimiser(model)
    textbook_step = textbook_training(config, num_items) if options.against else None
    sampler = build_sampler(config.negatives, config.num_negatives, torch.ones(num_items))
    generator, their_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    device = model.item_embedding.weight.device
    bf16 = is_bf16(options.precision, device)
    matrix = torch.randn(2048, 2048)
    seconds, gflops, input_seconds, their_seconds, lengths, owed = [], [], [], [], [], []
    examples = batches.epoch([0])
    with progress("training steps", options.num_steps) as bar:
        for step in range(options.num_steps + _WARMUP_STEPS):
            started = time.perf_counter()
            batch = next(examples)
            gathered = time.perf_counter()
            negatives = sampler.draw(generator, batch.targets_B)
            with arithmetic(device, bf16=bf16):
                losses = model.losses(batch, negatives, generator)
            optimiser.step(losses)
            ended = time.perf_counter()
            if textbook_step is not None:
                assert negatives.rows_M is not None, "the textbook step needs drawn negatives"
                textbook_step(batch, negatives.rows_M, their_generator)
            if step < _WARMUP_STEPS:
                continue
            their_seconds.append(time.perf_counter() - ended + gathered - started)
            gflops.append(matmul_gflops(matrix))
            seconds.append(ended - started)
            input_seconds.append(gathered - started)
            lengths.append(float(batch.lengths_B.float().mean()))
            owed.append(owed_gflop(config, batch.lengths_B.numpy(), num_items))
            bar.advance()
    step_s, step_gflop = float(np.median(seconds)), float(np.mean(owed))
    product_gflops = float(np.median(gflops))
    floor = config.batch_size * product_gflops / step_gflop
    speed = config.batch_size / step_s
    return {
        "num_items": num_items,
        "num_threads": torch.get_num_threads(),
        "precision": "bf16" if bf16 else "float32",
        "num_steps": options.num_steps,
        "mean_history_length": float(np.mean(lengths)),
        "examples_per_second": speed,
        "step_ms": 1000 * step_s,
        "input_share": float(np.median(input_seconds)) / step_s,
        "matmul_gflops": product_gflops,
        "owed_gflop": step_gflop,
        "floor_examples_per_second": floor,
        "share_of_floor": speed / floor,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "textbook": None if textbook_step is None else _compared(config, seconds, their_seconds),
    }


def _compared(config: TrainConfig, seconds: list[float], their_seconds: list[float]) -> dict[str, Any]:
    step_s = float(np.median(their_seconds))
    ratios = [theirs / ours for ours, theirs in zip(seconds, their_seconds, strict=True)]
    return {
        "examples_per_second": config.batch_size / step_s,
        "step_ms": 1000 * step_s,
        "ratio": float(np.mean(ratios)),
        "ratio_half_width": half_width(ratios),
    }


def _sequences(num_examples: int, num_items: int, *, is_full: bool) -> Sequences:
    """Return synthetic users' sequences with at least so many targets."""
    random = np.random.default_rng(0)
    if is_full:
        lengths_U = np.array([num_examples + 100])  # one endless user: nearly every history is full
    else:
        mean_rest = _MEAN_EVENTS - _MIN_EVENTS
        lengths_U = _MIN_EVENTS + random.geometric(1 / (mean_rest + 1), size=num_examples // 4) - 1
    offsets_U1 = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
    popularity = random.random(offsets_U1[-1]) ** 3
    return Sequences(
        items_E=np.minimum(popularity * num_items, num_items - 1).astype(np.int32),
        offsets_U1=offsets_U1,
        num_history_U=lengths_U.astype(np.int32),
    )


def matmul_gflops(matrix: Tensor) -> float:
    """Return the speed of one float32 product of a square matrix with itself, in GFLOP/s."""
    started = time.perf_counter()
    matrix @ matrix
    return float(2 * len(matrix) ** 3 / (time.perf_counter() - started) / 1e9)


def owed_gflop(config: TrainConfig, lengths_B: NDArray[np.int64], num_items: int) -> float:
    """Return one step's arithmetic: matrix products, once forward and twice backward, without padding.

    Of the interests that compete for a negative's score, only the winner has a backward pass.
    """
    batch, dim, width = len(lengths_B), config.embedding_dim, config.attention_dim
    interests = config.K
    positions = int(lengths_B.sum())
    pairs = int((lengths_B.astype(float) ** 2).sum())
    num_negatives = num_items if config.negatives == "all" else config.num_negatives
    scores = batch * num_negatives * dim  # of one interest each, with the negatives
    products = (
        positions * dim * width  # W1
        + positions * width * interests  # w
        + positions * interests * dim  # the weighted sum
        + batch * interests * dim * dim  # W2
        + scores
    )
    if config.contrast_weight:
        products += interests * dim * (2 * positions + batch * interests)
    if config.attend_weight:
        products += positions * interests * dim
    if config.construct_weight:
        pieces = config.construct_dim
        products += positions * interests * (dim * pieces + dim * dim)  # W3 W4 and W5 W4
        products += pairs * interests * (pieces + dim)  # logits, weighted sum
    beaten = (interests - 1) * scores if config.negative_scores == "served" else 0
    return float((3 * products + beaten) * 2 / 1e9)
