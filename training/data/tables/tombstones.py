"""Users who were forgotten: tombstones beside the parts of an event log, and the events that they cover.

A tombstone is a line `{"user_sha256": …, "until_ms": …}` of a file in the folder `_forgotten`. It covers
every event of the user up to that time, whichever part holds it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl

from re4.common.errors import DataError

FORGOTTEN: Final = "_forgotten"
"""Folder of the tombstones, in the folder of an event log."""


def read_tombstones(folder: Path) -> Mapping[str, int]:
    """Return the time up to which a user is forgotten, in milliseconds since 1970, by the digest of the id.

    Raises:
        DataError: a tombstone cannot be read. No training may use the events that it covers.
    """
    found: dict[str, int] = {}
    for path in sorted((folder / FORGOTTEN).glob("*.jsonl")):
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                note = json.loads(line)
                digest, until_ms = note["user_sha256"], note["until_ms"]
                if type(digest) is not str or type(until_ms) is not int or abs(until_ms) >= 2**63:
                    raise ValueError("another note")
                found[digest] = max(until_ms, found.get(digest, until_ms))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}), so it is not known who was forgotten; "
                "restore it"
            ) from error
    return found


def covered(
    users: pl.Series, times: pl.Series, units_per_second: float, tombstones: Mapping[str, int]
) -> pl.Series:
    """Return which events tombstones cover.

    Args:
        users: The user id of each event, integers or texts.
        times: The time of each event.
        units_per_second: Units of `times` in a second.
        tombstones: As `read_tombstones` returns them.
    """
    unique = users.unique()
    until = {
        user: tombstones[digest] * units_per_second / 1e3
        for user in unique.to_list()
        if (digest := hashlib.sha256(str(user).encode()).hexdigest()) in tombstones
    }
    if not until:
        return pl.Series([False]).new_from_index(0, len(users))
    limits = users.replace_strict(until, default=float("-inf"), return_dtype=pl.Float64)
    return times.cast(pl.Float64) <= limits
