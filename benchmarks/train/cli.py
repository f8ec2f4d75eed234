"""The verb `re4 bench train`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from re4.common.console import print_json, table
from re4.common.errors import UsageError

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
        "history_weight": 0.0,
        "position": False,
        "history_dropout": 0.0,
    },
    # What `re4 train` does when nothing is chosen.
    "default": {},
}


def train(
    preset: Annotated[
        Literal["authors", "default"], typer.Option(help="authors: K=8, L=20, 5,000 uniform negatives.")
    ] = "authors",
    num_items: Annotated[int, typer.Option(help="Items of the made-up catalogue.", min=2)] = 12_101,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A data set made by `re4 data prepare`, read as in training, in place of a made-up one."
        ),
    ] = None,
    num_steps: Annotated[
        int, typer.Option(help="Steps that are timed, after three that are not.", min=1)
    ] = 20,
    num_threads: Annotated[int, typer.Option(help="Threads of PyTorch; 0: as it chooses.", min=0)] = 0,
    precision: Annotated[
        Literal["auto", "float32", "bf16"], typer.Option(help="As for `re4 train`; of our step alone.")
    ] = "auto",
    full_histories: Annotated[
        bool, typer.Option("--full-histories", help="Every history at its full length: the worst case.")
    ] = False,
    against: Annotated[
        Literal["textbook"] | None,
        typer.Option(
            help="Take turns with another step on the same examples. textbook: the authors' equations "
            "written down plainly, with dense gradients and dense Adam. With --preset authors."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure training steps, and how far they are from the arithmetic they owe.

    Example: re4 bench train --preset authors --num-items 367982 --against textbook --json
    """
    if against and preset != "authors":
        raise UsageError(f"--against {against} does not know --preset {preset}; leave the preset at authors.")
    from re4.benchmarks.train.measure import measure
    from re4.training.config import TrainConfig
    from re4.training.data.dataset import Dataset

    if data and full_histories:
        raise UsageError("--full-histories makes histories up, and --data has its own: leave one out.")
    dataset = Dataset.open(data) if data else None
    num_items = dataset.num_items if dataset else num_items
    speed = measure(
        TrainConfig(**PRESETS[preset]).resolve(num_items),
        num_items,
        num_steps=num_steps,
        num_threads=num_threads,
        precision=precision,
        sequences=dataset.train if dataset else None,
        full_histories=full_histories,
        against_textbook=against == "textbook",
    )
    result = {"preset": preset, **asdict(speed)}
    if as_json:
        print_json(result)
        return
    textbook = result.pop("textbook")
    if textbook:
        result |= {f"textbook {name}": value for name, value in textbook.items()}
    rows = [
        [name.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"]
        for name, value in result.items()
        if name != "preset" and value is not None
    ]
    table(f"training steps, preset {preset}", ["", "figure"], rows)
