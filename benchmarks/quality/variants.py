"""What to train, as text: `model:setting=value:…`, and alternatives among which validation chooses."""

import json
from itertools import product
from typing import Any

from re4.errors import UsageError


def parse_variant(text: str) -> dict[str, Any]:
    """Read `model:name=value:…` as settings of a training.

    Raises:
        UsageError: naming the part that is not of that form, or the setting that there is not.
    """
    from training.config import TrainConfig

    model, *pairs = text.split(":")
    values: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
        if not sign or name not in TrainConfig().to_json():
            raise UsageError(f"--variants has {pair!r} in {text!r}; write model:setting=value, by commas.")
    TrainConfig(**values)
    return values


def alternatives(text: str) -> list[str]:
    """Write out a variant whose values have alternatives, `name=one|other`: every combination, plain.

    Raises:
        UsageError: as `parse_variant`, for any of them.
    """
    choices = []
    for part in text.split(":"):
        name, sign, values = part.partition("=")
        choices.append([name + sign + value for value in values.split("|")])
    plain = [":".join(parts) for parts in product(*choices)]
    for each in plain:
        parse_variant(each)
    return plain
