"""Options of `re4 bench train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from re4.common.errors import UsageError
from re4.settings.fields import check, setting

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
    # The defaults of `re4 train`.
    "default": {},
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What to measure, and on what."""

    preset: str = setting(
        "authors", "authors: K=8, L=20, 5,000 uniform negatives; default: as re4 train.", choices=PRESETS
    )
    num_items: int = setting(12_101, "Items of the synthetic catalogue.", low=2)
    data: Path | None = setting(
        None,
        "A data set made by `re4 data prepare`, read as in training, in place of a synthetic one.",
        default_text="synthetic",
    )
    num_steps: int = setting(20, "Steps that are timed, after three that are not.", low=1)
    num_threads: int = setting(0, "Threads of PyTorch; 0: as it chooses.", low=0)
    precision: str = setting(
        "auto", "As for `re4 train`; of our step alone.", choices=("auto", "float32", "bf16")
    )
    full_histories: bool = setting(
        False,
        "Every history at its full length: the worst case.",
        option="--full-histories",
        default_text="off",
    )
    against: str | None = setting(
        None,
        "Alternate with another step on the same examples. textbook: the authors' equations written down "
        "plainly, with dense gradients and dense Adam. With --preset authors.",
        choices=("textbook",),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.against and self.preset != "authors":
            raise UsageError(
                f"--against {self.against} does not know --preset {self.preset}; leave the preset at authors."
            )
        if self.data and self.full_histories:
            raise UsageError("--full-histories makes histories up, and --data has its own: leave one out.")
