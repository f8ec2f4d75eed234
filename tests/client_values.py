"""Values of replies in a form that compares by ==, to the last bit."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def values_of(value: Any) -> Any:
    """The value with its fields by name and its arrays as shape and bytes; without times, which differ."""
    if is_dataclass(value):
        names = [field.name for field in fields(value) if field.name != "stage_times"]
        return {name: values_of(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, list):
        return [values_of(each) for each in value]
    return str(value) if isinstance(value, Exception) else value
