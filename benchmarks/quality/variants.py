"""Variants as text: `model:setting=value:…`, and alternatives of which validation chooses one."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

from re4.common.errors import UsageError
from re4.training.config import TrainConfig


def parse_variant(text: str) -> TrainConfig:
    """Return the settings of `model:name=value:…`; a setting that is not named has the model's default."""
    model, *pairs = text.split(":")
    values: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
        if not sign or name == "seed" or name not in TrainConfig().to_json():
            raise UsageError(f"--variants has {pair!r} in {text!r}; write model:setting=value, by commas.")
    return TrainConfig(**values)


def variant_name(settings: dict[str, Any], num_items: int, events_per_user: float = 0.0) -> str:
    """Return the name of resolved settings: those that differ from the model's defaults, but the seed.

    Some defaults depend on the number of items and of events a user. `parse_variant` reads it.
    """
    model = TrainConfig(model=settings["model"])
    as_many = replace(model, num_interests=settings["num_interests"]).resolve(num_items, events_per_user)
    usual = as_many.to_json() | {"num_interests": model.resolve(num_items, events_per_user).num_interests}
    differing = [name for name in usual if name != "seed" and settings[name] != usual[name]]
    return ":".join([model.model, *(f"{name}={_text(settings[name])}" for name in differing)])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def alternatives(text: str) -> list[TrainConfig]:
    """Return every combination of a variant whose values have alternatives, `name=one|other`."""
    parts = (part.partition("=") for part in text.split(":"))
    choices = [[name + sign + value for value in values.split("|")] for name, sign, values in parts]
    return [parse_variant(":".join(parts)) for parts in product(*choices)]
