"""The encoders that can be trained: one line each, loaded when asked for.

An encoder is the *forward flow*, all that serving ever runs: a module whose
`forward(history_vectors_BLD, lengths_B)` gives `(interests_BKD, attention_BKL)` (see `encoder.py`). It holds
no item table. Histories are newest first, padded at the end; a length is at least 1; attention is 0 on
padding and sums to 1 over the rest. Some encoders give users with short histories fewer than K interests:
those that are not there repeat the first one and attend to nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMALL_CATALOGUE = 5000
"""Items up to which a model's defaults may be others; measured at 1,349, 3,416, 12,101 and 18,357."""


@dataclass(frozen=True, kw_only=True)
class EncoderKind:
    """Where an encoder's class lives, and the settings that make it what its paper describes."""

    module: str
    class_name: str
    defaults: Mapping[str, Any]
    """Settings that a configuration may leave to the model."""
    small_catalogue: Mapping[str, Any] = field(default_factory=dict)
    """Other values for some of them, for up to `SMALL_CATALOGUE` items."""
    one_interest: Mapping[str, Any] = field(default_factory=dict)
    """Other values for some of them, where K is 1."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the model has no choice of."""


_NO_FLOWS = {"contrast_weight": 0.0, "attend_weight": 0.0, "construct_weight": 0.0}
_NO_ATTENTION = {"position": False, "head": False, "routing_weight": 0.0, **_NO_FLOWS}
_HARD = {"interest_choice": "hard", "initial_vectors": "svd", "routing_weight": 0.0}
_PLAIN_LOSS = {"negative_scores": "chosen", "history_weight": 0.0}
_ONE_INTEREST = {"num_interests": 1, "interest_choice": "hard", **_NO_ATTENTION}

ENCODERS: Mapping[str, EncoderKind] = {
    "re4": EncoderKind(
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
        # Many interests, kept well apart, pay among many items with narrow tastes, and cost where tastes are
        # wide beside the catalogue; there, to rank what is new far above the history costs as well, and
        # longer steps gain nothing. One alone has none to be kept from. Figures: benchmarks/results/quality.
        small_catalogue={
            "num_interests": 4,
            "contrast_weight": 0.02,
            "construct_weight": 0.02,
            "history_weight": 0.05,
            "learning_rate": 0.002,
        },
        one_interest={**_NO_FLOWS, "history_weight": 0.0},
    ),
    "comirec-sa": EncoderKind(
        module="re4.training.encoders.comirec_sa",
        class_name="ComiRecSAEncoder",
        defaults={
            "num_interests": 4,
            "position": True,
            "head": False,
            **_PLAIN_LOSS,
            **_NO_FLOWS,
            "learning_rate": 0.002,
            **_HARD,
        },
    ),
    "mind": EncoderKind(
        module="re4.training.encoders.mind",
        class_name="MindEncoder",
        defaults={
            "num_interests": 4,
            "interest_choice": "soft",
            "initial_vectors": "svd",
            "learning_rate": 0.008,
            **_PLAIN_LOSS,
        },
        fixed=_NO_ATTENTION,
    ),
    "mean-pool": EncoderKind(
        module="re4.training.encoders.mean_pool",
        class_name="MeanPoolEncoder",
        defaults={"initial_vectors": "svd", "learning_rate": 0.008, **_PLAIN_LOSS},
        fixed=_ONE_INTEREST,
    ),
    "most-popular": EncoderKind(
        module="re4.training.encoders.most_popular",
        class_name="MostPopularEncoder",
        defaults={"learning_rate": 0.008, **_PLAIN_LOSS},  # of no account: nothing is trained
        fixed={
            **_ONE_INTEREST,
            "initial_vectors": "popularity",
            "num_epochs": 0,
            "scores": "inner",
            "temperature": 1.0,
        },
    ),
}
