"""Drop events that cannot be used: without a user, an item or a time, or with an unreadable time.

They are counted by reason, and the first ones are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from re4.common.errors import DataError
from re4.training.data.tables.ids import is_missing
from re4.training.data.tables.open_table import reading
from re4.training.data.timestamps import TimeClasses

NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ValidEvents:
    """The valid events, and a summary of the dropped ones."""

    valid: pl.DataFrame
    """`user`, `item` and `timestamp`."""
    dropped: dict[str, int]
    """Counts by reason."""
    examples: dict[str, list[str]]
    """The first dropped events, by reason."""


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
    found = drop_incomplete(file, lines, names)
    times = TimeClasses(found.valid["timestamp"])
    found = drop_other_times(found, times.readable(times.votes), names)
    refuse_no_valid(file, len(found.valid), [text for some in found.examples.values() for text in some])
    return replace(found, valid=found.valid.drop("event"))


def drop_incomplete(
    file: Path | str, lines: pl.LazyFrame, names: Mapping[str, str], *, first_event: int = 1
) -> ValidEvents:
    """Drop events without a user, an item or a time; `event` of the others is their number in the log."""
    with reading(file):
        events = lines.with_row_index("event", offset=first_event).collect(engine="streaming")
    for role in ("user", "item"):
        if events.schema[role].is_float():
            whole = pl.col(role).cast(pl.Int64, strict=False)
            events = events.with_columns(pl.when(whole == pl.col(role)).then(whole).alias(role))
    reasons = {f"without_{role}": is_missing(role, events.schema[role]) for role in ("user", "item")}
    reasons["without_timestamp"] = pl.col("timestamp").is_null()
    found = ValidEvents(valid=events, dropped={}, examples={})
    for reason, mask in reasons.items():
        found = _drop(found, found.valid.select(mask).to_series(), reason, names)
    return found


def drop_other_times(found: ValidEvents, is_readable: pl.Series, names: Mapping[str, str]) -> ValidEvents:
    """Drop events whose times are not readable."""
    return _drop(found, ~is_readable, "with_other_timestamps", names) if len(found.valid) else found


def refuse_no_valid(file: Path | str, num_valid: int, examples: Sequence[str]) -> None:
    """Refuse a log without a valid event.

    Raises:
        DataError: There is none.
    """
    if not num_valid:
        raise DataError(f"{file}: no event is valid ({'; '.join(examples)}); check the names of the columns")


def _drop(found: ValidEvents, is_invalid: pl.Series, reason: str, names: Mapping[str, str]) -> ValidEvents:
    dropped = found.dropped | {f"events_{reason}": int(is_invalid.sum())}
    if not is_invalid.any():
        return replace(found, dropped=dropped)
    texts = []
    for row in found.valid.filter(is_invalid).head(NUM_SHOWN).iter_rows(named=True):
        values = ", ".join(f"{names[role]} {row[role]!r}" for role in names)
        texts.append(f"{reason.replace('_', ' ')}: event {row['event']:,} ({values})")
    examples = found.examples | {reason: texts}
    return ValidEvents(valid=found.valid.filter(~is_invalid), dropped=dropped, examples=examples)
