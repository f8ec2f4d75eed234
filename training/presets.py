"""The encoders that can be trained, each with its preset: the settings that its paper describes.

An encoder is the forward flow, the part of a model that serving runs: a module whose
`forward(history_vectors_BLD, lengths_B)` returns `(interests_BKD, attention_BKL)`
(`encoders/encoder.py`). It holds no item vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMALL_CATALOGUE = 5000
"""Catalogues of up to so many items have defaults of their own; measured at 1,349, 3,416, 12,101, 18,357."""

MANY_EVENTS = 30
"""Mean training events of a user from which later events than the next one count as well; measured at 9, 106
and 165."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An encoder's class and its settings."""

    module: str
    class_name: str
    defaults: Mapping[str, Any]
    """Values of the settings that a configuration leaves open (None)."""
    small_catalogue: Mapping[str, Any] = field(default_factory=dict)
    """Values that differ for up to `SMALL_CATALOGUE` items."""
    one_interest: Mapping[str, Any] = field(default_factory=dict)
    """Values that differ for one interest (K = 1)."""
    several_interests: Mapping[str, Any] = field(default_factory=dict)
    """Values that differ for several interests."""
    several: int | None = None
    """Number that `num_interests = auto` compares with one; None: the preset's own."""
    many_events: Mapping[str, Any] = field(default_factory=dict)
    """Values that differ where users have `MANY_EVENTS` training events or more, on average."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values that cannot be changed; another one is refused."""


COMMON_DEFAULTS: Mapping[str, Any] = {
    "max_history_length": 20,
    "history_dropout": 0.3,
    "num_blocks": 0,
    "every_position": False,
    "next_n": 1,
    "loss": "softmax",
}
"""Defaults of every model whose preset has no others."""

_NO_FLOWS = {"contrast_weight": 0.0, "attend_weight": 0.0, "construct_weight": 0.0}
_NEWEST = {"every_position": False}
_NO_ATTENTION = {"position": False, "head": False, "routing_weight": 0.0, **_NO_FLOWS}
_NO_BLOCKS = {"num_blocks": 0, **_NEWEST}
_HARD = {"interest_choice": "hard", "initial_vectors": "svd", "routing_weight": 0.0}
_PLAIN_LOSS = {"negative_scores": "chosen", "history_weight": 0.0}
_NO_CHOICE = {"interest_choice": "hard", **_NO_ATTENTION}
_ONE_INTEREST = {"num_interests": 1, **_NO_CHOICE}
_NO_STEPS = {
    **_ONE_INTEREST,
    **_NO_BLOCKS,
    "num_epochs": 0,
    "attributes": "",
    "scores": "inner",
    "temperature": 1.0,
    "logit_adjustment": 0.0,
}
_FITTED = {**_NO_STEPS, "initial_vectors": "fitted"}
PLAIN_ATTENTION: Mapping[str, Any] = {
    "num_interests": 4,
    "position": True,
    "head": False,
    "learning_rate": 0.002,
    **_HARD,
    **_PLAIN_LOSS,
    **_NO_FLOWS,
}
"""For an encoder with attention, trained by the recommendation loss alone."""

PRESETS: Mapping[str, Preset] = {
    "re4": Preset(
        module="re4.training.encoders.re4",
        class_name="Re4Encoder",
        defaults={
            "num_interests": 8,
            "position": True,
            "head": False,
            "contrast_weight": 0.1,
            "attend_weight": 0.01,
            "construct_weight": 0.1,
            "negative_scores": "served",
            "history_weight": 0.2,
            "learning_rate": 0.008,
            **_HARD,
        },
        # In a large catalogue with narrow tastes, many interests kept well apart raise the recall. In a small
        # catalogue they lower it, and so does a high weight of the ranking above the history; longer steps
        # gain nothing there. A single interest needs no flows. Figures: benchmarks/results/quality.
        small_catalogue={
            "num_interests": 4,
            "contrast_weight": 0.02,
            "construct_weight": 0.02,
            "history_weight": 0.05,
            "learning_rate": 0.002,
        },
        one_interest={**_NO_FLOWS, "history_weight": 0.0},
        fixed=_NEWEST,
    ),
    "comirec-sa": Preset(
        module="re4.training.encoders.comirec_sa",
        class_name="ComiRecSAEncoder",
        defaults=PLAIN_ATTENTION,
        fixed=_NEWEST,
    ),
    "transformer": Preset(
        module="re4.training.encoders.transformer",
        class_name="TransformerEncoder",
        defaults={
            "num_interests": 1,
            "max_history_length": 50,
            "num_blocks": 2,
            "every_position": True,
            "history_dropout": 0.0,
            "initial_vectors": "svd",
            "learning_rate": 0.004,
            **_PLAIN_LOSS,
        },
        several=4,
        several_interests={"loss": "mixture"},
        many_events={"next_n": 7},
        fixed=_NO_CHOICE,
    ),
    "mind": Preset(
        module="re4.training.encoders.mind",
        class_name="MindEncoder",
        defaults={
            "num_interests": 4,
            "interest_choice": "soft",
            "initial_vectors": "svd",
            "learning_rate": 0.008,
            **_PLAIN_LOSS,
        },
        fixed={**_NO_ATTENTION, **_NO_BLOCKS},
    ),
    "mean-pool": Preset(
        module="re4.training.encoders.mean_pool",
        class_name="MeanPoolEncoder",
        defaults={"initial_vectors": "svd", "learning_rate": 0.008, **_PLAIN_LOSS},
        fixed={**_ONE_INTEREST, **_NO_BLOCKS},
    ),
    "ease": Preset(
        module="re4.training.encoders.linear",
        class_name="LinearEncoder",
        defaults={"learning_rate": 0.008, **_PLAIN_LOSS},  # without effect: no steps are taken
        fixed=_FITTED,
    ),
    "item-item": Preset(
        module="re4.training.encoders.linear",
        class_name="LinearEncoder",
        defaults={"learning_rate": 0.008, **_PLAIN_LOSS},
        fixed=_FITTED,
    ),
    "most-popular": Preset(
        module="re4.training.encoders.most_popular",
        class_name="MostPopularEncoder",
        defaults={"learning_rate": 0.008, **_PLAIN_LOSS},  # without effect: nothing is trained
        fixed={**_NO_STEPS, "initial_vectors": "popularity"},
    ),
}
