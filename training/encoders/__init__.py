"""The encoders that can be trained: one line each, loaded when asked for.

An encoder is the *forward flow*, all that serving ever runs: a module whose
`forward(history_vectors_BLD, lengths_B)` gives `(interests_BKD, attention_BKL)`. It holds no item
table. Histories are newest first, padded at the end; a length is at least 1; attention is 0 on padding
and sums to 1 over the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.encoders.attention import AttentionEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderKind:
    """Where an encoder's class lives, and the settings that make it what its paper describes."""

    module: str
    class_name: str
    defaults: Mapping[str, Any]


_NO_FLOWS = {"contrast_weight": 0.0, "attend_weight": 0.0, "construct_weight": 0.0}

ENCODERS: Mapping[str, EncoderKind] = {
    "re4": EncoderKind(
        module="training.encoders.re4",
        class_name="Re4Encoder",
        defaults={
            "position": True,
            "head": False,
            "contrast_weight": 0.1,
            "attend_weight": 0.01,
            "construct_weight": 0.1,
        },
    ),
    "comirec-sa": EncoderKind(
        module="training.encoders.comirec_sa",
        class_name="ComiRecSAEncoder",
        defaults={"position": True, "head": False, **_NO_FLOWS},
    ),
}


def build_encoder(config: "TrainConfig") -> "AttentionEncoder":
    """Make the encoder that a resolved configuration names, with fresh weights."""
    kind = ENCODERS[config.model]
    encoder: AttentionEncoder = getattr(import_module(kind.module), kind.class_name)(config)
    return encoder
