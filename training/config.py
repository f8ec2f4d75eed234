"""Every hyper-parameter of a training run, with its default, its unit and its bounds.

This file knows nothing of torch, so that `re4 train --help` is quick: the command's options are made
from these fields. A field that is None takes the model's own default (`training.encoders.ENCODERS`).
"""

import math
import tomllib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from re4.errors import RunError, UsageError
from training.encoders import ENCODERS
from training.negatives import NEGATIVES


def _option(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
) -> Any:
    """Declare a field with its default, its line of help, and the values allowed."""
    return field(default=default, metadata={"help": help_text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run. Built with `TrainConfig.resolve`, stored as `config.json` in the run."""

    model: str = _option("re4", f"Encoder: {', '.join(ENCODERS)}.", choices=ENCODERS)
    num_interests: int = _option(4, "K, interest vectors per user.", low=1, high=64)
    embedding_dim: int = _option(64, "D, width of item and interest vectors.", low=2, high=4096)
    attention_dim: int = _option(256, "H, width inside the attention.", low=1, high=16384)
    max_history_length: int = _option(20, "L, newest events of a history that count.", low=1, high=1024)
    initial_vectors: str = _option(
        "svd", "Item vectors to start from: svd (of who chose what) or random.", choices=("svd", "random")
    )
    history_dropout: float = _option(
        0.3, "Share of history events left out of each training example, at random.", low=0, high=0.95
    )
    position: bool | None = _option(None, "Add a learned recency position inside the attention.")
    head: bool | None = _option(None, "Pass each interest through tanh(FC z), as the authors' code does.")

    negatives: str = _option(
        "auto",
        f"Negatives: {', '.join(NEGATIVES)}; auto: all up to 20,000 items.",
        choices=("auto", *NEGATIVES),
    )
    num_negatives: int = _option(5000, "M, shared negatives a step (where they are sampled).", low=1)

    contrast_weight: float | None = _option(None, "Weight of re-contrast; 0 switches it off.", low=0)
    contrast_temperature: float = _option(0.1, "Temperature of re-contrast.", low=1e-4)
    attend_weight: float | None = _option(None, "Weight of re-attend; 0 switches it off.", low=0)
    construct_weight: float | None = _option(None, "Weight of re-construct; 0 switches it off.", low=0)
    construct_dim: int = _option(64, "D_b, width of the pieces that re-construct works on.", low=1)

    batch_size: int = _option(1024, "Examples a step.", low=1)
    learning_rate: float = _option(2e-3, "Adam's step size.", low=1e-8)
    weight_decay: float = _option(1e-6, "L2 penalty on every weight.", low=0)
    num_epochs: int = _option(40, "Most passes over the training events.", low=1)
    patience: int = _option(5, "Stop after so many epochs without a better validation Recall@50.", low=1)
    seed: int = _option(0, "Seed of every random choice.", low=0)

    def __post_init__(self) -> None:
        """Check every value against its bounds.

        Raises:
            UsageError: naming the option, the value and the values allowed.
        """
        for item in fields(self):
            value, low, high = getattr(self, item.name), item.metadata["low"], item.metadata["high"]
            choices = item.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(
                    f"{option_name(item.name)} is {value!r}; choose one of {', '.join(choices)}."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{option_name(item.name)} is {value}; it must be a finite number.")
            if value is not None and low is not None and value < low:
                raise UsageError(f"{option_name(item.name)} is {value}; the smallest value is {low}.")
            if value is not None and high is not None and value > high:
                raise UsageError(f"{option_name(item.name)} is {value}; the largest value is {high}.")

    def resolve(self, num_items: int) -> Self:
        """Fill in what depends on the model and on the catalogue, so that nothing is left to choose."""
        own = ENCODERS[self.model].defaults
        chosen: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        if self.negatives == "auto":
            chosen["negatives"] = "all" if num_items <= 20_000 else "uniform"
        return replace(self, **chosen)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read the fields back from a run.

        Raises:
            RunError: where a field is missing or unknown.
        """
        known = {item.name for item in fields(cls)}
        if values.keys() != known:
            odd = ", ".join(sorted(values.keys() ^ known))
            raise RunError(f"config.json is of another version of this program: {odd}. Train the run again.")
        return cls(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """Read hyper-parameters from a TOML file: `name = value` lines, the names as in `TrainConfig`.

    Raises:
        UsageError: where the file cannot be read, or holds an unknown name or a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    hints = get_type_hints(TrainConfig)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise UsageError(f"--config {path}: unknown {', '.join(unknown)}; known are {', '.join(hints)}.")
    for name, value in values.items():
        allowed = get_args(hints[name]) or (hints[name],)
        fits = isinstance(value, (*allowed, int)) if float in allowed else isinstance(value, allowed)
        if not fits or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(each.__name__ for each in allowed if each is not type(None))
            raise UsageError(f"--config {path}: {name} is {value!r}; it must be of type {wanted}.")
    return values


def option_name(field_name: str) -> str:
    """Give the command's spelling of a field's name."""
    return "--" + field_name.replace("_", "-")
