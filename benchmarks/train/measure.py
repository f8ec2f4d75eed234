"""Steps timed whole: input pipeline, losses, gradients and optimiser.

Sequences that are made up are as long as Amazon Books' (five events and more, 14.7 on average), items drawn
by popularity. A plain matrix product takes turns with the steps, so that figures from two machines, or two
hours, can be compared. So does a textbook step, on the same examples and negatives: whatever else the machine
does falls on all of them.
"""

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from re4.benchmarks.common.intervals import half_width
from re4.benchmarks.train.arithmetic import matmul_gflops, owed_gflop
from re4.benchmarks.train.textbook import TextbookTraining
from re4.common.console import progress
from re4.training.config import TrainConfig
from re4.training.data.batches import TrainingBatches
from re4.training.data.dataset import Sequences
from re4.training.kernels.precision import arithmetic, is_bf16
from re4.training.model.model import MultiInterestModel
from re4.training.samplers import build_sampler
from re4.training.trainer.allocator import keep_freed_memory
from re4.training.trainer.optimiser import Optimiser

_MIN_EVENTS, _MEAN_EVENTS = 5, 14.7
_WARMUP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class TextbookSpeed:
    """The textbook step, in turns with ours."""

    examples_per_second: float
    step_ms: float
    ratio: float
    """How many of our steps fit into one of these: the mean over pairs of steps."""
    ratio_half_width: float | None
    """Half of its 95 % interval; None after a single pair."""


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """What the run measured; times are medians over steps."""

    num_items: int
    num_threads: int
    precision: str
    num_steps: int
    mean_history_length: float
    examples_per_second: float
    step_ms: float
    input_share: float
    """Part of a step's time that went into gathering its examples."""
    matmul_gflops: float
    """float32 product of two 2048 x 2048 matrices, the median of one after each step."""
    owed_gflop: float
    """Arithmetic of one step's matrix products, forward and backward, padding not counted."""
    floor_examples_per_second: float
    """What the matrix products alone would allow at that speed."""
    share_of_floor: float
    peak_memory_bytes: int
    """Of the whole process, so of both steps where there are two."""
    textbook: TextbookSpeed | None


def measure(
    config: TrainConfig,
    num_items: int,
    *,
    num_steps: int,
    num_threads: int,
    precision: str,
    sequences: Sequences | None = None,
    full_histories: bool = False,
    against_textbook: bool = False,
) -> StepSpeed:
    """Take some steps and time them.

    Args:
        config: resolved settings; the textbook step wants all three flows and drawn negatives.
        num_items: items of the catalogue.
        num_steps: steps that count, after three that do not.
        num_threads: threads of PyTorch; 0 leaves them as they are.
        precision: auto, float32 or bf16, of our step.
        sequences: what to take them on; None makes some up.
        full_histories: of those, every history at its full length.
        against_textbook: time a textbook step after each of ours.
    """
    keep_freed_memory()
    if num_threads:
        torch.set_num_threads(num_threads)
    if sequences is None:
        num_examples = config.batch_size * (num_steps + _WARMUP_STEPS + 1)
        sequences = _sequences(num_examples, num_items, full_histories=full_histories)
    batches = TrainingBatches(
        sequences,
        max_history_length=config.max_history_length,
        batch_size=config.batch_size,
        history_dropout=config.history_dropout,
    )
    torch.manual_seed(0)
    model = MultiInterestModel(config, num_items)
    optimiser = Optimiser(model)
    textbook = TextbookTraining(config, num_items) if against_textbook else None
    sampler = build_sampler(config.negatives, config.num_negatives, torch.ones(num_items))
    generator, their_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    device = model.item_embedding.weight.device
    bf16 = is_bf16(precision, device)
    matrix = torch.randn(2048, 2048)
    seconds, gflops, input_seconds, their_seconds, lengths, owed = [], [], [], [], [], []
    examples = batches.epoch([0])
    with progress("training steps", num_steps) as bar:
        for step in range(num_steps + _WARMUP_STEPS):
            started = time.perf_counter()
            batch = next(examples)
            gathered = time.perf_counter()
            negatives = sampler.draw(generator, batch.targets_B)
            with arithmetic(device, bf16=bf16):
                losses = model.losses(batch, negatives, generator)
            optimiser.step(losses)
            ended = time.perf_counter()
            if textbook is not None:
                assert negatives.rows_M is not None, "the textbook step wants drawn negatives"
                textbook.step(batch, negatives.rows_M, their_generator)
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
    return StepSpeed(
        num_items=num_items,
        num_threads=torch.get_num_threads(),
        precision="bf16" if bf16 else "float32",
        num_steps=num_steps,
        mean_history_length=float(np.mean(lengths)),
        examples_per_second=speed,
        step_ms=1000 * step_s,
        input_share=float(np.median(input_seconds)) / step_s,
        matmul_gflops=product_gflops,
        owed_gflop=step_gflop,
        floor_examples_per_second=floor,
        share_of_floor=speed / floor,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        textbook=None if textbook is None else _compared(config, seconds, their_seconds),
    )


def _compared(config: TrainConfig, seconds: list[float], their_seconds: list[float]) -> TextbookSpeed:
    step_s = float(np.median(their_seconds))
    ratios = [theirs / ours for ours, theirs in zip(seconds, their_seconds, strict=True)]
    return TextbookSpeed(
        examples_per_second=config.batch_size / step_s,
        step_ms=1000 * step_s,
        ratio=float(np.mean(ratios)),
        ratio_half_width=half_width(ratios),
    )


def _sequences(num_examples: int, num_items: int, *, full_histories: bool) -> Sequences:
    """Make up users' sequences with at least so many targets."""
    random = np.random.default_rng(0)
    if full_histories:
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
