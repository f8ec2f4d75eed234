"""Drop events that cannot be used: without a user, an item or a time, or with an unreadable time.

They are counted by reason, and the first ones are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from re4.common.errors import DataError
from re4.training.data.tables.ids import is_missing
from re4.training.data.tables.open_table import reading
from re4.training.data.timestamps import are_readable

_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ValidEvents:
    """The valid events, and a summary of the dropped ones."""

    valid: pl.DataFrame
    """`user`, `item` and `timestamp`."""
    dropped: dict[str, int]
    """Counts by reason."""
    examples: list[str]
    """The first dropped events of each reason."""


def drop_invalid_events(file: Path | str, lines: pl.LazyFrame, names: Mapping[str, str]) -> ValidEvents:
    """Drop invalid events. Of mixed notations of time, that of most events is kept.

    Ids that are fractional numbers become integers where they are whole, as pandas writes integers
    beside missing values.

    Args:
        file: The log, for messages.
        lines: Its columns `user`, `item` and `timestamp`.
        names: The names of these columns in the log.

    Raises:
        DataError: No event is valid.
    """
    with reading(file):
        events = lines.with_row_index("event", offset=1).collect(engine="streaming")
    dropped: dict[str, int] = {}
    examples: list[str] = []
    for role in ("user", "item"):
        if events.schema[role].is_float():
            whole = pl.col(role).cast(pl.Int64, strict=False)
            events = events.with_columns(pl.when(whole == pl.col(role)).then(whole).alias(role))
    reasons = {f"without_{role}": is_missing(role, events.schema[role]) for role in ("user", "item")}
    reasons["without_timestamp"] = pl.col("timestamp").is_null()
    for reason, mask in reasons.items():
        events = _drop(events, events.select(mask).to_series(), reason, names, dropped, examples)
    if len(events):
        unreadable = ~are_readable(events["timestamp"])
        events = _drop(events, unreadable, "with_other_timestamps", names, dropped, examples)
    if not len(events):
        raise DataError(f"{file}: no event is valid ({'; '.join(examples)}); check the names of the columns")
    return ValidEvents(valid=events.drop("event"), dropped=dropped, examples=examples)


def _drop(
    events: pl.DataFrame,
    is_invalid: pl.Series,
    reason: str,
    names: Mapping[str, str],
    dropped: dict[str, int],
    examples: list[str],
) -> pl.DataFrame:
    dropped[f"events_{reason}"] = int(is_invalid.sum())
    if not is_invalid.any():
        return events
    for row in events.filter(is_invalid).head(_NUM_SHOWN).iter_rows(named=True):
        values = ", ".join(f"{names[role]} {row[role]!r}" for role in names)
        examples.append(f"{reason.replace('_', ' ')}: event {row['event']:,} ({values})")
    return events.filter(~is_invalid)
