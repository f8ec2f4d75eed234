"""What to train, as text: `model:setting=value:…`, and alternatives among which validation chooses."""

import json
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from re4.common.errors import UsageError

if TYPE_CHECKING:
    from re4.training.config import TrainConfig


def parse_variant(text: str) -> "TrainConfig":
    """Read `model:name=value:…` as settings of a training; what is not named is left to the model.

    Raises:
        UsageError: naming the part that is not of that form, or the setting that there is not.
    """
    from re4.training.config import TrainConfig

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


def variant_name(settings: dict[str, Any], num_items: int) -> str:
    """Name settings by what differs from the model's defaults; `parse_variant` reads the name back.

    Args:
        settings: of a resolved `TrainConfig`; the seed is no part of the name.
        num_items: of the catalogue, which some defaults depend on.
    """
    from re4.training.config import TrainConfig

    model = TrainConfig(model=settings["model"])
    as_many = replace(model, num_interests=settings["num_interests"]).resolve(num_items)
    usual = as_many.to_json() | {"num_interests": model.resolve(num_items).num_interests}
    differing = [name for name in usual if name != "seed" and settings[name] != usual[name]]
    return ":".join([model.model, *(f"{name}={_text(settings[name])}" for name in differing)])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def alternatives(text: str) -> "list[TrainConfig]":
    """Read a variant whose values have alternatives, `name=one|other`: every combination.

    Raises:
        UsageError: as `parse_variant`, for any of them.
    """
    choices = []
    for part in text.split(":"):
        name, sign, values = part.partition("=")
        choices.append([name + sign + value for value in values.split("|")])
    return [parse_variant(":".join(parts)) for parts in product(*choices)]
