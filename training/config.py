"""Every hyper-parameter of a training run, with its default, its unit and its bounds.

The options of `re4 train` are made from these fields. A field that is None takes the default of the
model's preset (`presets.py`); a field that the preset fixes takes that value, and another value is
refused. PyTorch is not imported here, so that `re4 train --help` is quick.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from re4.common.errors import UsageError
from re4.settings.fields import check, option_name, setting
from re4.settings.sources import read_file
from re4.training.presets import COMMON_DEFAULTS, MANY_EVENTS, PRESETS, SMALL_CATALOGUE
from re4.training.samplers import SAMPLERS

AUTO = "auto"
"""The value of `model` that the log decides, and of `num_interests` that validation decides."""
_MODELS_OWN = "the model's own"
SVD_ITEMS = 2_000_000
"""Largest catalogue that starts from SVD vectors by default: the SVD takes some 1,600 bytes an item."""
CHECKPOINT_MINUTES = 10.0
"""Default interval of the checkpoints within an epoch."""
ADDED_SINCE: dict[str, Any] = {
    "attributes": "",
    "averaging": 0.0,
    "information_weight": 0.0,
    "logit_adjustment": 0.0,
    "history_weight": 0.0,
    "warm_up": 0.0,
    "next_n": 1,
    "loss": "softmax",
    "num_blocks": 0,
    "every_position": False,
    "ease_penalty": 200.0,
    "recency_decay": 0.8,
}
"""Settings that runs of earlier versions lack, with the values by which those versions trained."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run. Built with `TrainConfig.resolve`, stored as `config.json` in the run."""

    model: str = setting(
        AUTO,
        f"Encoder: {', '.join(PRESETS)}; auto: transformer where users have {MANY_EVENTS} training events or "
        "more on average, otherwise re4.",
        choices=(*PRESETS, AUTO),
    )
    num_interests: int | str | None = setting(
        None,
        "K, interest vectors per user; each is a search when serving. auto: train the model's own number and "
        "1, and keep 1 unless validation Recall@50 is ahead beyond its interval.",
        low=1,
        high=64,
        word=AUTO,
        default_text=f"re4: 8, up to {SMALL_CATALOGUE:,} items 4; comirec-sa and mind: 4; others: 1",
    )
    embedding_dim: int = setting(64, "D, width of item and interest vectors.", low=2, high=4096)
    attention_dim: int = setting(256, "H, width inside the attention.", low=1, high=16384)
    max_history_length: int | None = setting(
        None,
        "L, newest events of a history that count.",
        low=1,
        high=1024,
        default_text="transformer: 50; others: 20",
    )
    num_blocks: int | None = setting(
        None,
        "Blocks of a causal transformer over the history, before the attention.",
        low=0,
        high=16,
        default_text="transformer: 2; others: 0",
    )
    every_position: bool | None = setting(
        None,
        "Train at every event of a history, and not at its newest one only (transformer).",
        default_text=_MODELS_OWN,
    )
    initial_vectors: str | None = setting(
        None,
        "Initial item vectors: svd (of the user-item matrix) or random. Above 2 million items: random. "
        "popularity and fitted belong to models that take no training steps.",
        choices=("svd", "random", "popularity", "fitted"),
        default_text=_MODELS_OWN,
    )
    attributes: str = setting(
        "",
        "Columns of the data set's catalogue whose values get vectors: an item's vector is its own part plus "
        "those of its values, so that items which share values are alike. It helps rare and new items.",
        metavar="NAME,NAME",
    )
    history_dropout: float | None = setting(
        None,
        "Share of history events left out of each training example, at random.",
        low=0,
        high=0.95,
        default_text="transformer: 0; others: 0.3",
    )
    next_n: int | None = setting(
        None,
        "The target of an example is drawn from the user's next n events; 1: the very next one.",
        low=1,
        high=1024,
        default_text=f"transformer: 7 where users have {MANY_EVENTS} events or more on average; otherwise 1",
    )
    position: bool | None = setting(
        None, "Add a learned recency position inside the attention.", default_text=_MODELS_OWN
    )
    head: bool | None = setting(
        None, "Pass each interest through tanh(FC z), as the authors' code does.", default_text=_MODELS_OWN
    )

    scores: str = setting(
        "inner", "Score of interest and item: inner product or cosine.", choices=("inner", "cosine")
    )
    temperature: float = setting(1.0, "Scores are divided by it, in training and in serving.", low=1e-3)
    loss: str | None = setting(
        None,
        "Recommendation loss: softmax, mixture (the chance of the target is the mean of the interests' "
        "softmaxes), or bce (binary cross entropy of the target and the mean negative, as in SASRec).",
        choices=("softmax", "mixture", "bce"),
        default_text="transformer with several interests: mixture; otherwise softmax",
    )
    interest_choice: str | None = setting(
        None,
        "The interest that a target trains: hard (the best one) or soft (all, by their scores).",
        choices=("hard", "soft"),
        default_text=_MODELS_OWN,
    )
    choice_sharpness: float = setting(
        1.0, "Soft choice: weights are softmax(sharpness x score) over interests.", low=0
    )
    negatives: str = setting(
        "auto",
        f"Negatives: {', '.join(SAMPLERS)}; auto: all up to 20,000 items.",
        choices=("auto", *SAMPLERS),
    )
    num_negatives: int = setting(5000, "M, shared negatives a step (where they are drawn).", low=1)
    negative_scores: str | None = setting(
        None,
        "Score of a negative: chosen (by the interest that the target trains) or served (by the best of "
        "all, as in serving; K times the work).",
        choices=("chosen", "served"),
        default_text=_MODELS_OWN,
    )
    hard_negatives: float = setting(
        0.0, "REMI's beta: weigh negatives by exp(beta x score); 0 weighs them alike.", low=0
    )
    routing_weight: float | None = setting(
        None,
        "Weight of REMI's routing regularisation, against attention on few items.",
        low=0,
        default_text=_MODELS_OWN,
    )
    history_weight: float | None = setting(
        None,
        "Weight of the history ranking loss: the target above the user's own history; 0 switches it off.",
        low=0,
        default_text=_MODELS_OWN,
    )

    logit_adjustment: float = setting(
        0.0,
        "Weight of the log of an item's training events, added to its scores in the recommendation loss and "
        "not in serving: rarer items get more places; 0 switches it off.",
        low=0,
    )
    information_weight: float = setting(
        0.0,
        "Weight of the mutual information between an item and the interest that finds it, which keeps "
        "interests apart where re-contrast does not; 0 switches it off.",
        low=0,
    )
    contrast_weight: float | None = setting(
        None,
        "Weight of re-contrast, which keeps interests apart; 0 switches it off.",
        low=0,
        default_text=_MODELS_OWN,
    )
    contrast_temperature: float = setting(0.1, "Temperature of re-contrast.", low=1e-4)
    attend_weight: float | None = setting(
        None, "Weight of re-attend; 0 switches it off.", low=0, default_text=_MODELS_OWN
    )
    construct_weight: float | None = setting(
        None, "Weight of re-construct; 0 switches it off.", low=0, default_text=_MODELS_OWN
    )
    construct_dim: int = setting(64, "D_b, width of the pieces that re-construct works on.", low=1)

    ease_penalty: float = setting(200.0, "EASE's L2 penalty (ease).", low=1e-6)
    recency_decay: float = setting(
        0.8,
        "Weight of an event of a history, relative to the next newer one (ease, item-item).",
        low=0.01,
        high=1,
    )

    batch_size: int = setting(1024, "Examples a step.", low=1)
    learning_rate: float | None = setting(
        None,
        "Adam's step size.",
        low=1e-8,
        default_text=f"0.008; transformer: 0.004; comirec-sa, and re4 up to {SMALL_CATALOGUE:,} items: 0.002",
    )
    warm_up: float = setting(
        0.0, "Epochs over which the learning rate rises evenly from 0; 0 begins with the full rate.", low=0
    )
    weight_decay: float = setting(1e-6, "L2 penalty on every weight.", low=0)
    averaging: float = setting(
        2.0, "Epochs over which weights are averaged to be judged and kept; 0 takes them as they are.", low=0
    )
    num_epochs: int = setting(
        40, "Most passes over the training events; 0 keeps what training starts from.", low=0
    )
    patience: int = setting(
        5,
        "Epochs without a better validation Recall@50 after which training stops. One that is not clearly "
        "behind the best (95 % interval over users) counts half.",
        low=1,
    )
    seed: int = setting(0, "Seed of every random choice.", low=0)

    def __post_init__(self) -> None:
        """Check every value against its bounds.

        Raises:
            UsageError: naming the option, the value and the values allowed.
        """
        check(self)

    def resolve(self, num_items: int, events_per_user: float = 0.0) -> Self:
        """Return the settings with every open field filled in for the model and the log.

        Args:
            num_items: Size of the catalogue.
            events_per_user: Mean training events of a user; 0 where it is unknown.

        Raises:
            UsageError: a setting differs from the value that the preset fixes.
        """
        if self.num_interests == AUTO:
            raise UsageError("--num-interests auto is for `re4 train` alone; give a number here.")
        if self.model == AUTO:
            if events_per_user < MANY_EVENTS:
                return replace(self, model="re4").resolve(num_items, events_per_user)
            try:
                return replace(self, model="transformer").resolve(num_items, events_per_user)
            except UsageError as error:
                raise UsageError(
                    f"{error} --model auto takes it because users have {events_per_user:.0f} training events "
                    "on average; name --model re4, or another model."
                ) from error
        preset = PRESETS[self.model]
        usual = {**COMMON_DEFAULTS, **preset.defaults}
        if num_items <= SMALL_CATALOGUE:
            usual |= preset.small_catalogue
        if events_per_user >= MANY_EVENTS:
            usual |= preset.many_events
        number = usual.get("num_interests") if self.num_interests is None else self.num_interests
        usual |= preset.one_interest if number == 1 else preset.several_interests
        chosen = {name: value for name, value in usual.items() if getattr(self, name) is None}
        defaults = {item.name: item.default for item in fields(self)}
        for name, value in preset.fixed.items():
            if getattr(self, name) not in (value, defaults[name]):
                raise UsageError(
                    f"{option_name(name)} is {getattr(self, name)}; "
                    f"with --model {self.model} it is always {value}."
                )
            chosen[name] = value
        if self.logit_adjustment and self.loss == "bce":
            raise UsageError(
                "--logit-adjustment changes softmax and mixture alone; leave it or --loss bce out."
            )
        if self.initial_vectors == "fitted" and preset.fixed.get("initial_vectors") != "fitted":
            raise UsageError(f"--initial-vectors is fitted; --model {self.model} has no fitted vectors.")
        if chosen.get("initial_vectors") == "svd" and num_items > SVD_ITEMS:
            chosen["initial_vectors"] = "random"
        if self.negatives == "auto":
            chosen["negatives"] = "all" if num_items <= 20_000 else "uniform"
        return replace(self, **chosen)

    @property
    def L(self) -> int:
        """Newest events of a history that count; only after `resolve`."""
        assert self.max_history_length is not None, "resolve comes first"
        return self.max_history_length

    @property
    def K(self) -> int:
        """Interests of a user; only after `resolve`."""
        assert isinstance(self.num_interests, int), "resolve comes first"
        return self.num_interests

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read the fields from a run; `ADDED_SINCE` has the fields that runs of earlier versions
        lack.

        Raises:
            ValueError: where a field is missing or unknown.
        """
        known = {item.name for item in fields(cls)}
        values = ADDED_SINCE | values
        if values.keys() != known:
            odd = ", ".join(sorted(values.keys() ^ known))
            raise ValueError(f"settings of another version of this program: {odd}")
        return cls(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """Read hyper-parameters from a TOML file: `name = value` lines, the names as in `TrainConfig`.

    Raises:
        UsageError: where the file cannot be read, or holds an unknown name or a value of another
            type.
    """
    return read_file(path, TrainConfig)
