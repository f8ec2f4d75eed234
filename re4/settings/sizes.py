"""Sizes in settings, such as 8GiB."""

import re
from typing import Final

from re4.common.errors import UsageError

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b|i)?", re.IGNORECASE)


def parse_bytes(text: str, option: str) -> int:
    """Parse a size such as 8GiB, 8Gi, 512MB or 2g: units are powers of 1,024.

    Raises:
        UsageError: not a size; the message names the option.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{option} {text}: a size above 0 is needed, such as 8GiB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])
