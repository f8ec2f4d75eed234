"""Values of attributes: the text of a value, and the position of a number or date among others."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

AttributeValue: TypeAlias = str | int | float | bool | date
Order: TypeAlias = Literal["number", "date"]

MAX_ORDERED_CHARACTERS: Final = 64
"""Longer texts are neither numbers nor dates."""

VALUE_TYPES: Final = "texts, numbers, booleans or dates"

_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_MAX_EXACT: Final = 2.0**53


def value_text(value: Any) -> str | None:
    """Return the text of a value: `drama`, `7`, `12.5`, `true`, `2026-01-31`; None for a missing value.

    None, the empty text and a number that is not finite are missing values. A whole number has no decimal
    point.

    Raises:
        TypeError: the value is of another type.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        number = float(value)
        if not math.isfinite(number):
            return None
        return str(int(number)) if number.is_integer() and abs(number) < _MAX_EXACT else repr(number)
    if isinstance(value, date):  # of which a datetime is one
        return value.isoformat()
    if isinstance(value, str | int):
        return str(value)
    raise TypeError(f"{value!r:.60} is {type(value).__name__}")


def position(text: str) -> tuple[Order, float] | None:
    """Return the kind of a text that has an order, and its position in it; None for other texts.

    The position of a number is the number, that of a date the seconds since 1970. A date is in the form of
    ISO 8601, `2026-01-31` or `2026-01-31T12:30:00+01:00`; without a zone it is in UTC.
    """
    if len(text) > MAX_ORDERED_CHARACTERS:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        return ("number", number) if math.isfinite(number) else None
    if _DATE.fullmatch(text):
        try:
            time = datetime.fromisoformat(text)
            return "date", (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):  # such as the 30th of February
            return None
    return None


def positions(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the position of each of V texts, float64 [V]; None unless all are numbers or all are dates."""
    found = np.empty(len(texts))
    order = None
    for place, text in enumerate(texts):
        one = position(text)
        if one is None or order not in (None, one[0]):
            return None
        order, found[place] = one
    return found
