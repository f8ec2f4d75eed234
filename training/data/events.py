"""Read an event log: a user, an item and a time in every row.

The result holds dense codes in place of ids, 16 bytes an event, sorted by user and time. Two passes
keep memory low: the first one checks every value and decides the types, the second one reads the
columns in these types.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.errors import DataError
from re4.training.data.layout import TYPE_OF_KIND, IdKind
from re4.training.data.tables.ids import encode, is_canonical_int, is_missing, kind_of_type
from re4.training.data.tables.open_table import Table, TableSource, check_columns, open_table, reading
from re4.training.data.timestamps import Timestamps, parse_timestamps

_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of an event log's columns."""

    user: str = "user"
    """User ids."""
    item: str = "item"
    """Item ids."""
    timestamp: str = "timestamp"
    """Times."""

    def by_option(self) -> Mapping[str, str]:
        """Return the names by the command-line option that sets them."""
        return {
            "--user-column": self.user,
            "--item-column": self.item,
            "--timestamp-column": self.timestamp,
        }


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
    num_duplicates: int
    """Exact duplicates (same user, item and timestamp) that were dropped."""


def read_events(source: TableSource, columns: Columns) -> EventLog:
    """Read an event log: a file, a folder of files, or a data frame.

    Ids are kept exactly as given. In csv and tsv files, a column is of integers only if every one
    of its ids is a canonical 64-bit integer.

    Raises:
        DataError: The file cannot be read, columns or values are missing, timestamps cannot be
            understood.
    """
    table = open_table(source)
    check_columns(table, columns.by_option())
    lines = table.frame.select(pl.col(columns.user), pl.col(columns.item), pl.col(columns.timestamp))
    if table.untyped:
        lines = lines.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    kinds = _survey(table, lines, columns)
    with reading(table.file):
        frame = lines.select(
            user=pl.col(columns.user).cast(TYPE_OF_KIND[kinds["user"]]),
            item=pl.col(columns.item).cast(TYPE_OF_KIND[kinds["item"]]),
            timestamp=pl.col(columns.timestamp),
        ).collect(engine="streaming")
    timestamps = parse_timestamps(f"{table.file}: column {columns.timestamp!r}", frame["timestamp"])
    user_codes, user_ids = encode(frame["user"])
    item_codes, item_ids = encode(frame["item"])
    del frame
    coded = pl.DataFrame({"user": user_codes, "item": item_codes, "timestamp": timestamps.values})
    coded, num_duplicates = _without_duplicates(coded.sort("user", "timestamp", maintain_order=True))
    events = Events(
        users_E=coded["user"].to_numpy(),
        items_E=coded["item"].to_numpy(),
        times_E=coded["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
    )
    return EventLog(events=events, timestamps=timestamps, file=table.file, num_duplicates=num_duplicates)


def _survey(table: Table, lines: pl.LazyFrame, columns: Columns) -> dict[str, IdKind]:
    """Check every event for missing values, and return the kind of both ids."""
    kinds: dict[str, IdKind] = {}
    looks = {"events": pl.len()}
    missing = {name: is_missing(name, table.schema[name]) for name in (columns.user, columns.item)}
    missing[columns.timestamp] = pl.col(columns.timestamp).is_null()
    for role, name in (("user", columns.user), ("item", columns.item)):
        kinds[role] = kind_of_type(f"{table.file}: column {name!r}", table.schema[name])
        if table.untyped:
            looks[f"{role} is int"] = is_canonical_int(pl.col(name)).all()
    looks |= {f"missing {name}": mask.sum() for name, mask in missing.items()}
    with reading(table.file):
        seen = lines.select(**looks).collect(engine="streaming").row(0, named=True)
    if seen["events"] == 0:
        raise DataError(f"{table.file} has a header but no events")
    for name, mask in missing.items():
        if seen[f"missing {name}"]:
            _refuse_missing(table, lines, name, mask, seen[f"missing {name}"])
    return {role: "int" if seen.get(f"{role} is int") else kind for role, kind in kinds.items()}


def _refuse_missing(table: Table, lines: pl.LazyFrame, name: str, mask: pl.Expr, num_missing: int) -> None:
    with reading(table.file):
        first = lines.with_row_index("event", offset=1).filter(mask).head(_NUM_SHOWN).collect()["event"]
    raise DataError(
        f"{table.file}: column {name!r} is empty in {num_missing:,} events (the first: event "
        f"{', '.join(f'{event:,}' for event in first)}); every event needs a user, an item and a timestamp: "
        "correct or remove these events"
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
