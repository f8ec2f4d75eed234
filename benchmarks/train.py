"""`re4 bench train`: examples a second of a training step, beside what the arithmetic alone would allow.

The data are generated: sequences as long as Amazon Books' (five events and more, 14.7 on average), items
drawn by popularity. Times are of whole steps, input pipeline and optimiser included. The speed of a plain
matrix product is measured in the same run, so that figures from two machines, or two hours, can be compared.
"""

import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from re4.console import print_json, progress, table

PRESETS: dict[str, dict[str, Any]] = {
    # The authors' settings for Amazon Books.
    "authors": {
        "num_interests": 8,
        "max_history_length": 20,
        "embedding_dim": 64,
        "attention_dim": 256,
        "batch_size": 1024,
        "negatives": "uniform",
        "num_negatives": 5000,
        "negative_scores": "chosen",
        "position": False,
        "history_dropout": 0.0,
    },
    # What `re4 train` does when nothing is chosen.
    "default": {},
}
_MIN_EVENTS, _MEAN_EVENTS = 5, 14.7


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """What the run measured; times are medians over steps."""

    preset: str
    num_items: int
    num_threads: int
    num_steps: int
    mean_history_length: float
    examples_per_second: float
    step_ms: float
    input_share: float
    """Part of a step's time that went into gathering its examples."""
    matmul_gflops: float
    """float32 product of two 2048 x 2048 matrices, the best of several before and after the steps."""
    owed_gflop: float
    """Arithmetic of one step's matrix products, forward and backward, padding not counted."""
    floor_examples_per_second: float
    """What the matrix products alone would allow at that speed."""
    share_of_floor: float
    peak_memory_bytes: int


def train(
    preset: Annotated[
        Literal["authors", "default"], typer.Option(help="authors: K=8, L=20, 5,000 uniform negatives.")
    ] = "authors",
    num_items: Annotated[int, typer.Option(help="Items of the catalogue.", min=2)] = 12_101,
    num_steps: Annotated[
        int, typer.Option(help="Steps that are timed, after three that are not.", min=1)
    ] = 20,
    num_threads: Annotated[int, typer.Option(help="Threads of PyTorch; 0: as it chooses.", min=0)] = 0,
    full_histories: Annotated[
        bool, typer.Option("--full-histories", help="Every history at its full length: the worst case.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure training steps, and how far they are from the arithmetic they owe.

    Example: re4 bench train --preset authors --num-items 367982 --json
    """
    result = asdict(measure(preset, num_items, num_steps, num_threads, full_histories=full_histories))
    if as_json:
        print_json(result)
        return
    rows = [
        [name.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"]
        for name, value in result.items()
        if name != "preset"
    ]
    table(f"training steps, preset {preset}", ["", "figure"], rows)


def measure(
    preset: str, num_items: int, num_steps: int, num_threads: int, *, full_histories: bool
) -> StepSpeed:
    """Take some steps on generated data and time them."""
    import resource

    import numpy as np
    import torch

    from training.batches import TrainingBatches
    from training.config import TrainConfig
    from training.model import MultiInterestModel
    from training.negatives import build_sampler
    from training.optimiser import Optimiser

    if num_threads:
        torch.set_num_threads(num_threads)
    config = TrainConfig(**PRESETS[preset]).resolve(num_items)
    random = np.random.default_rng(0)
    num_examples = config.batch_size * (num_steps + 4)
    batches = TrainingBatches(
        _sequences(num_examples, num_items, random, full_histories=full_histories),
        max_history_length=config.max_history_length,
        batch_size=config.batch_size,
        history_dropout=config.history_dropout,
    )
    torch.manual_seed(0)
    model = MultiInterestModel(config, num_items)
    optimiser = Optimiser(model)
    sampler = build_sampler(config.negatives, config.num_negatives, torch.ones(num_items))
    generator = torch.Generator().manual_seed(0)
    gflops = _matmul_gflops()
    seconds, input_seconds, lengths, owed = [], [], [], []
    examples = batches.epoch([0])
    with progress("training steps", num_steps) as bar:
        for step in range(num_steps + 3):
            started = time.perf_counter()
            batch = next(examples)
            gathered = time.perf_counter()
            negatives = sampler.draw(generator, batch.targets_B)
            optimiser.step(model.losses(batch, negatives, generator))
            ended = time.perf_counter()
            if step < 3:
                continue
            seconds.append(ended - started)
            input_seconds.append(gathered - started)
            lengths.append(float(batch.lengths_B.float().mean()))
            owed.append(_owed_gflop(config, batch.lengths_B.numpy(), num_items))
            bar.advance()
    gflops = max(gflops, _matmul_gflops())
    step_s, step_gflop = float(np.median(seconds)), float(np.mean(owed))
    floor = config.batch_size * gflops / step_gflop
    speed = config.batch_size / step_s
    return StepSpeed(
        preset=preset,
        num_items=num_items,
        num_threads=torch.get_num_threads(),
        num_steps=num_steps,
        mean_history_length=float(np.mean(lengths)),
        examples_per_second=speed,
        step_ms=1000 * step_s,
        input_share=float(np.median(input_seconds)) / step_s,
        matmul_gflops=gflops,
        owed_gflop=step_gflop,
        floor_examples_per_second=floor,
        share_of_floor=speed / floor,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _sequences(num_examples: int, num_items: int, random: Any, *, full_histories: bool) -> Any:
    """Users' sequences with at least so many targets."""
    import numpy as np

    from training.data.dataset import Sequences

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


def _matmul_gflops() -> float:
    import torch

    size = 2048
    matrix = torch.randn(size, size)
    best: float = 0.0
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def _owed_gflop(config: Any, lengths_B: Any, num_items: int) -> float:
    """Matrix products of one step: each is done once forward and twice backward."""
    batch, dim, width = len(lengths_B), config.embedding_dim, config.attention_dim
    interests = config.num_interests
    positions = int(lengths_B.sum())
    pairs = int((lengths_B.astype(float) ** 2).sum())
    num_negatives = num_items if config.negatives == "all" else config.num_negatives
    rivals = interests if config.negative_scores == "served" else 1
    products = (
        positions * dim * width  # W1
        + positions * width * interests  # w
        + positions * interests * dim  # the weighted sum
        + batch * interests * dim * dim  # W2
        + batch * rivals * num_negatives * dim  # scores of the negatives
    )
    if config.contrast_weight:
        products += interests * dim * (2 * positions + batch * interests)
    if config.attend_weight:
        products += positions * interests * dim
    if config.construct_weight:
        pieces = config.construct_dim
        products += positions * interests * (dim * pieces + dim * dim)  # W3 W4 and W5 W4
        products += pairs * interests * (pieces + dim)  # logits, weighted sum
    return float(3 * 2 * products / 1e9)
