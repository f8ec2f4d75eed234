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
        lines = lines_of(table, columns)
        if columns.event is not None:
            with reading(table.file):
                counts = count_types(lines)
            dropped["events_of_other_types"] = check_types(table, columns.event, event_types, counts)
            lines = of_types(lines, event_types)
        if drop_invalid:
            invalid = drop_invalid_events(table.file, lines, columns.by_role)
            lines = invalid.valid.lazy()
            dropped |= invalid.dropped
            examples += [text for some in invalid.examples.values() for text in some]
        schema = lines.collect_schema()
        check_id_types(table, schema, columns)
        with reading(table.file):
            survey = IdSurvey.of(lines, schema, untyped=table.untyped)
        check_complete(table, lines, columns, survey)
        with reading(table.file):
            frame = with_kinds(lines, survey.kinds(schema)).collect(engine="streaming")
    timestamps = parse_timestamps(f"{table.file}: column {columns.timestamp!r}", frame["timestamp"])
    if isinstance(table.file, Path) and (tombstones := read_tombstones(table.file)):
        is_kept = ~covered(frame["user"], timestamps.values, timestamps.units_per_second, tombstones)
        dropped["events_of_forgotten_users"] = len(frame) - int(is_kept.sum())
        frame = frame.filter(is_kept)
        timestamps = replace(timestamps, values=timestamps.values.filter(is_kept))
        refuse_all_forgotten(table.file, len(frame))
    user_codes, user_ids = encode(frame["user"])
    item_codes, item_ids = encode(frame["item"])
    del frame
    events, dropped["duplicate_events"] = sorted_events(
        pl.DataFrame({"user": user_codes, "item": item_codes, "timestamp": timestamps.values}),
        user_ids,
        item_ids,
    )
    return EventLog(events=events, timestamps=timestamps, file=table.file, dropped=dropped, examples=examples)


def sorted_events(coded: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> tuple[Events, int]:
    """Sort events by user and time, and drop duplicates.

    Args:
        coded: `user` and `item`, as codes, and `timestamp`, in the order of the file.
        user_ids: The ids of users, by code.
        item_ids: The ids of items, by code.

    Returns:
        The events, and the number of duplicates that were dropped.
    """
    coded, num_duplicates = _without_duplicates(coded.sort("user", "timestamp", maintain_order=True))
    events = Events(
        users_E=coded["user"].to_numpy(),
        items_E=coded["item"].to_numpy(),
        times_E=coded["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
    )
    return events, num_duplicates


def lines_of(table: Table, columns: Columns) -> pl.LazyFrame:
    """Return the columns of the events as `user`, `item`, `timestamp` and, where it is given, `type`."""
    roles = {**columns.by_role, **({} if columns.event is None else {"type": columns.event})}
    lines = table.frame.select(**{role: pl.col(name) for role, name in roles.items()})
    return lines.filter(~pl.all_horizontal(pl.all().is_null())) if table.untyped else lines  # no blank lines


def count_types(lines: pl.LazyFrame) -> dict[str | None, int]:
    """Count the events of each type."""
    kinds = lines.group_by(pl.col("type").cast(pl.String)).len().collect(engine="streaming")
    return dict(kinds.iter_rows())


def check_types(
    table: Table, column: str, event_types: Sequence[str], counts: Mapping[str | None, int]
) -> int:
    """Return the number of events of other types than the given ones.

    Raises:
        DataError: No types are given, or there is no event of one of them; the message has the types.
    """
    most = sorted(counts.items(), key=lambda each: -each[1])[:_NUM_TYPES]
    shown = ", ".join(f"{name!r} ({number:,} events)" for name, number in most)
    missing = [name for name in event_types if name not in counts]
    if not event_types or missing:
        problem = f"has no {missing[0]!r}" if missing else "holds the types of the events"
        raise DataError(
            f"{table.file}: column {column!r} {problem}; it has {shown}; choose those that count with "
            "--event-types"
        )
    return sum(counts.values()) - sum(counts[name] for name in set(event_types))


def of_types(lines: pl.LazyFrame, event_types: Sequence[str]) -> pl.LazyFrame:
    """Return the events of the given types."""
    return lines.filter(pl.col("type").cast(pl.String).is_in(list(event_types)))


@dataclass(frozen=True, kw_only=True)
class IdSurvey:
    """What decides the kinds of the ids. Surveys of two parts of a log can be added."""

    num_events: int
    num_missing: Mapping[str, int]
    """Events without a `user`, an `item` or a `timestamp`."""
    is_canonical: Mapping[str, bool]
    """Whether each text of the role is a canonical integer; empty for a table with types."""

    @classmethod
    def of(cls, lines: pl.LazyFrame, schema: pl.Schema, *, untyped: bool) -> "IdSurvey":
        """Survey events with the columns `user`, `item` and `timestamp`."""
        missing = {role: is_missing(role, schema[role]) for role in ("user", "item")}
        missing["timestamp"] = pl.col("timestamp").is_null()
        roles = ("user", "item") if untyped else ()
        seen = lines.select(
            pl.len().alias("events"),
            *(is_canonical_int(pl.col(role)).all().alias(f"{role} is int") for role in roles),
            *(mask.sum().alias(f"missing {role}") for role, mask in missing.items()),
        )
        row = seen.collect(engine="streaming").row(0, named=True)
        return cls(
            num_events=row["events"],
            num_missing={role: row[f"missing {role}"] for role in missing},
            is_canonical={role: row[f"{role} is int"] for role in roles},
        )

    def __add__(self, other: "IdSurvey") -> "IdSurvey":
        return IdSurvey(
            num_events=self.num_events + other.num_events,
            num_missing={role: number + other.num_missing[role] for role, number in self.num_missing.items()},
            is_canonical={role: it and other.is_canonical[role] for role, it in self.is_canonical.items()},
        )

    def kinds(self, schema: pl.Schema) -> dict[str, IdKind]:
        """Return the kind of the ids of users and of items."""
        return {
            role: "int" if self.is_canonical.get(role) or schema[role].is_integer() else "string"
            for role in ("user", "item")
        }


def check_id_types(table: Table, schema: pl.Schema, columns: Columns) -> None:
    """Refuse types that cannot be ids.

    Raises:
        DataError: The type of a column cannot be an id, such as a float or a date.
    """
    for role in ("user", "item"):
        kind_of_type(f"{table.file}: column {columns.by_role[role]!r}", schema[role])


def check_complete(table: Table, lines: pl.LazyFrame, columns: Columns, survey: IdSurvey) -> None:
    """Refuse a log without events, and events without a user, an item or a time.

    Args:
        table: The log.
        lines: All of its events; the first incomplete ones are searched for.
        columns: The names of its columns.
        survey: Of all events.

    Raises:
        DataError: There are such events, or no events.
    """
    if survey.num_events == 0:
        raise DataError(f"{table.file} has a header but no events")
    for role, number in survey.num_missing.items():
        if number:
            schema = lines.collect_schema()
            mask = pl.col(role).is_null() if role == "timestamp" else is_missing(role, schema[role])
            _refuse_missing(table, lines, columns.by_role[role], mask, number)


def with_kinds(lines: pl.LazyFrame, kinds: Mapping[str, IdKind]) -> pl.LazyFrame:
    """Return `user`, `item` and `timestamp`, with the ids in the types of their kinds."""
    return lines.select(
        user=pl.col("user").cast(TYPE_OF_KIND[kinds["user"]]),
        item=pl.col("item").cast(TYPE_OF_KIND[kinds["item"]]),
        timestamp="timestamp",
    )


def refuse_all_forgotten(file: Path | str, num_left: int) -> None:
    """Refuse a log of which no event is left.

    Raises:
        DataError: None is.
    """
    if not num_left:
        raise DataError(f"{file}: every event is of a user who was forgotten")


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
