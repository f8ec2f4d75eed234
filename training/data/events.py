"""Read an event log: a user, an item and a time in every row.

The result holds dense codes in place of ids, 16 bytes an event, sorted by user and time. Two passes
keep memory low: the first one checks every value and decides the types, the second one reads the
columns in these types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.errors import DataError
from re4.training.data.invalid_events import drop_invalid_events
from re4.training.data.layout import TYPE_OF_KIND, IdKind
from re4.training.data.tables.ids import encode, is_canonical_int, is_missing, kind_of_type
from re4.training.data.tables.open_table import Table, TableSource, check_columns, reading
from re4.training.data.tables.readable_table import readable_table
from re4.training.data.tables.tombstones import covered, read_tombstones
from re4.training.data.timestamps import Timestamps, parse_timestamps

_NUM_SHOWN = 3
_NUM_TYPES = 20
"""Types of events in a message."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of an event log's columns."""

    user: str = "user"
    """User ids."""
    item: str = "item"
    """Item ids."""
    timestamp: str = "timestamp"
    """Times."""
    event: str | None = None
    """Types of events, such as view and purchase; None where all events count."""

    def by_option(self) -> Mapping[str, str]:
        """Return the names by the command-line option that sets them."""
        names = {
            "--user-column": self.user,
            "--item-column": self.item,
            "--timestamp-column": self.timestamp,
        }
        return names if self.event is None else {**names, "--event-column": self.event}

    @property
    def by_role(self) -> Mapping[str, str]:
        """Return the names of the columns that every event needs, by `user`, `item` and `timestamp`."""
        return {"user": self.user, "item": self.item, "timestamp": self.timestamp}


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events sorted by user, then time, then place in the file."""

    users_E: npt.NDArray[np.uint32]
    """User codes: positions in `user_ids`."""
    items_E: npt.NDArray[np.uint32]
    """Item codes: positions in `item_ids`."""
    times_E: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    """Times, in the log's own unit."""
    user_ids: pl.Series
    """External user ids (Int64 or String), in the order of their first event in the file."""
    item_ids: pl.Series
    """External item ids (Int64 or String), in the order of their first event in the file."""

    @property
    def num_events(self) -> int:
        """E, the number of events."""
        return len(self.users_E)


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """The events of a log, and findings from reading it."""

    events: Events
    """The events, each distinct (user, item, timestamp) once."""
    timestamps: Timestamps
    """The notation of the timestamps, and their values in file order."""
    file: Path | str
    """The file, its folder, or how a data frame is named."""
    dropped: Mapping[str, int]
    """Counts of dropped events by reason: exact duplicates (same user, item and timestamp), events of other
    types, of forgotten users, invalid events."""
    examples: list[str]
    """The first invalid events that were dropped, a line of text each."""


def read_events(
    source: TableSource, columns: Columns, *, event_types: Sequence[str] = (), drop_invalid: bool = False
) -> EventLog:
    """Read an event log: a file, a folder of files, or a data frame.

    Ids are kept exactly as given. In csv and tsv files, a column is of integers only if every one
    of its ids is a canonical 64-bit integer.

    Args:
        source: The event log.
        columns: The names of its columns.
        event_types: The types of events that count, where `columns.event` is given.
        drop_invalid: Whether invalid events are dropped and counted; otherwise they are an error.

    Raises:
        DataError: The file cannot be read, columns or values are missing, timestamps cannot be
            understood, there is no event of a type, or no event is valid.
    """
    dropped: dict[str, int] = {}
    examples: list[str] = []
    with readable_table(source, drop_damaged=drop_invalid) as (table, damage):
        check_columns(table, columns.by_option())
        if damage.num_lines:
            dropped["damaged_lines"] = damage.num_lines
            examples += damage.examples
        lines = _lines(table, columns)
        if columns.event is not None:
            lines, dropped["events_of_other_types"] = _of_types(table, lines, columns.event, event_types)
        if drop_invalid:
            invalid = drop_invalid_events(table.file, lines, columns.by_role)
            lines = invalid.valid.lazy()
            dropped |= invalid.dropped
            examples += invalid.examples
        kinds = _survey(table, lines, columns)
        with reading(table.file):
            frame = lines.select(
                user=pl.col("user").cast(TYPE_OF_KIND[kinds["user"]]),
                item=pl.col("item").cast(TYPE_OF_KIND[kinds["item"]]),
                timestamp="timestamp",
            ).collect(engine="streaming")
    timestamps = parse_timestamps(f"{table.file}: column {columns.timestamp!r}", frame["timestamp"])
    if isinstance(table.file, Path) and (tombstones := read_tombstones(table.file)):
        is_kept = ~covered(frame["user"], timestamps.values, timestamps.units_per_second, tombstones)
        dropped["events_of_forgotten_users"] = len(frame) - int(is_kept.sum())
        frame = frame.filter(is_kept)
        timestamps = replace(timestamps, values=timestamps.values.filter(is_kept))
        if frame.is_empty():
            raise DataError(f"{table.file}: every event is of a user who was forgotten")
    user_codes, user_ids = encode(frame["user"])
    item_codes, item_ids = encode(frame["item"])
    del frame
    coded = pl.DataFrame({"user": user_codes, "item": item_codes, "timestamp": timestamps.values})
    coded, dropped["duplicate_events"] = _without_duplicates(
        coded.sort("user", "timestamp", maintain_order=True)
    )
    events = Events(
        users_E=coded["user"].to_numpy(),
        items_E=coded["item"].to_numpy(),
        times_E=coded["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
    )
    return EventLog(events=events, timestamps=timestamps, file=table.file, dropped=dropped, examples=examples)


def _lines(table: Table, columns: Columns) -> pl.LazyFrame:
    """Return the columns of the events as `user`, `item`, `timestamp` and, where it is given, `type`."""
    roles = {**columns.by_role, **({} if columns.event is None else {"type": columns.event})}
    lines = table.frame.select(**{role: pl.col(name) for role, name in roles.items()})
    return lines.filter(~pl.all_horizontal(pl.all().is_null())) if table.untyped else lines  # no blank lines


def _of_types(
    table: Table, lines: pl.LazyFrame, column: str, event_types: Sequence[str]
) -> tuple[pl.LazyFrame, int]:
    """Return the events of the given types, and the number of the others.

    Raises:
        DataError: No types are given, or there is no event of one of them; the message has the types.
    """
    kind = pl.col("type").cast(pl.String)
    with reading(table.file):
        counts = dict(
            lines.group_by(kind).len().sort("len", descending=True).collect(engine="streaming").iter_rows()
        )
    shown = ", ".join(f"{name!r} ({number:,} events)" for name, number in list(counts.items())[:_NUM_TYPES])
    missing = [name for name in event_types if name not in counts]
    if not event_types or missing:
        problem = f"has no {missing[0]!r}" if missing else "holds the types of the events"
        raise DataError(
            f"{table.file}: column {column!r} {problem}; it has {shown}; choose those that count with "
            "--event-types"
        )
    num_others = sum(counts.values()) - sum(counts[name] for name in set(event_types))
    return lines.filter(kind.is_in(list(event_types))), num_others


def _survey(table: Table, lines: pl.LazyFrame, columns: Columns) -> dict[str, IdKind]:
    """Check every event for missing values, and return the kind of both ids."""
    kinds: dict[str, IdKind] = {}
    looks = {"events": pl.len()}
    schema = lines.collect_schema()
    missing = {role: is_missing(role, schema[role]) for role in ("user", "item")}
    missing["timestamp"] = pl.col("timestamp").is_null()
    for role in ("user", "item"):
        kinds[role] = kind_of_type(f"{table.file}: column {columns.by_role[role]!r}", schema[role])
        if table.untyped:
            looks[f"{role} is int"] = is_canonical_int(pl.col(role)).all()
    looks |= {f"missing {role}": mask.sum() for role, mask in missing.items()}
    with reading(table.file):
        seen = lines.select(**looks).collect(engine="streaming").row(0, named=True)
    if seen["events"] == 0:
        raise DataError(f"{table.file} has a header but no events")
    for role, mask in missing.items():
        if seen[f"missing {role}"]:
            _refuse_missing(table, lines, columns.by_role[role], mask, seen[f"missing {role}"])
    return {role: "int" if seen.get(f"{role} is int") else kind for role, kind in kinds.items()}


def _refuse_missing(table: Table, lines: pl.LazyFrame, name: str, mask: pl.Expr, num_missing: int) -> None:
    with reading(table.file):
        first = lines.with_row_index("event", offset=1).filter(mask).head(_NUM_SHOWN).collect()["event"]
    raise DataError(
        f"{table.file}: column {name!r} is empty in {num_missing:,} events (the first: event "
        f"{', '.join(f'{event:,}' for event in first)}); every event needs a user, an item and a timestamp: "
        "correct or remove these events, or leave them out with --drop-invalid"
    )


def _without_duplicates(coded: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Drop all but the first of equal events, from events sorted by user and time.

    Only events that share user and time with a neighbour can be duplicates; the others need no
    hash.
    """
    users, times = coded["user"].to_numpy(), coded["timestamp"].to_numpy()
    like_next = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    shared = np.append(like_next, False) | np.append(False, like_next)
    places = np.flatnonzero(shared)
    first = coded[places].select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    keep = np.ones(len(coded), dtype=np.bool_)
    keep[places[~first]] = False
    num_duplicates = len(coded) - int(keep.sum())
    return (coded.filter(pl.Series(keep)) if num_duplicates else coded), num_duplicates
