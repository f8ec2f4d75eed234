"""The encoders, the forward flows from item vectors to interests; `training/presets.py` lists them."""

from importlib import import_module

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoder
from re4.training.presets import PRESETS


def build_encoder(config: TrainConfig) -> Encoder:
    """Make the encoder that a resolved configuration names, with fresh weights."""
    preset = PRESETS[config.model]
    encoder: Encoder = getattr(import_module(preset.module), preset.class_name)(config)
    return encoder
