"""From an event log, or ready-split files, to a prepared data set on disk: the steps, in order."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl
from pydantic import JsonValue

from re4.common.console import progress
from re4.common.errors import UsageError
from re4.training.data import DEFAULT_MAX_USER_EVENTS, DEFAULT_MIN_EVENTS, DEFAULT_SEED
from re4.training.data.catalogue import Catalogue, join_catalogue, read_catalogue
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.event_cleaning import clean_events
from re4.training.data.events import Columns, Events, read_events
from re4.training.data.item_order import order_items
from re4.training.data.k_core import Filtered, k_core
from re4.training.data.layout import SPLITS, SplitName
from re4.training.data.sequences import read_sequences
from re4.training.data.split import HASH_RULE, split_by_time, split_by_user
from re4.training.data.tables.open_table import TableSource
from re4.training.data.tables.row_store import in_memory
from re4.training.data.timestamps import Timestamps
from re4.training.data.writing import refuse_existing, write_dataset

SplitBy = Literal["user", "time"]
_NUM_STEPS = 4
_MANY_ITEMS = 0.5
"""Share of dropped items above which the summary has advice."""

_log = logging.getLogger(__name__)


def prepare_data(
    events: TableSource,
    out: Path | str,
    *,
    catalogue: TableSource | None = None,
    user_column: str = "user",
    item_column: str = "item",
    timestamp_column: str = "timestamp",
    catalogue_item_column: str | None = None,
    min_events: int = DEFAULT_MIN_EVENTS,
    max_user_events: int | None = None,
    event_column: str | None = None,
    event_types: Sequence[str] | None = None,
    drop_invalid: bool = False,
    split: SplitBy = "user",
    seed: int = DEFAULT_SEED,
    cuts: tuple[str, str] | None = None,
    now_s: float | None = None,
) -> Dataset:
    """Prepare a data set for training from an event log, as `re4 data prepare` does.

    Args:
        events: The event log, a user, an item and a timestamp in every row: the path of a file or
            of a folder of files, or a data frame of polars, pandas or another library.
        out: The folder to write; it must not exist, or be empty.
        catalogue: Descriptions to join onto the items (title, genres, …), a row for each item; as
            `events`.
        user_column: The event log's column of user ids.
        item_column: Its column of item ids.
        timestamp_column: Its column of times: since 1970, ISO 8601, or dates.
        catalogue_item_column: The catalogue's column of item ids; None for `item_column`.
        min_events: Users and items with fewer events are dropped, until none are left; 1 drops
            nothing.
        max_user_events: Of users with more events, only the newest ones stay. None drops users that
            stand out (`event_cleaning.py`), and keeps the newest 10,000 events of the others.
        event_column: The event log's column of types of events; None where all events count.
        event_types: The types that count, such as "purchase".
        drop_invalid: Whether damaged lines, events without a user, item or time, and times in another
            notation than that of most events are dropped and counted; otherwise they are an error.
        split: How train, valid and test are separated: by user (80, 10 and 10 % of the users, by a
            hash of the id and the seed), or by time.
        seed: Of the hash that holds out users.
        cuts: The two cuts of a split by time, as ISO 8601; None for about 80, 10 and 10 % of the
            events.
        now_s: Seconds since 1970; events more than a day later are dropped. None for the present
            time.

    Raises:
        DataError: The input cannot be used, nothing is left of it, or `out` is not free.
        UsageError: A value is not allowed.
    """
    if min_events < 1:
        raise UsageError(f"--min-events is {min_events}; it must be at least 1, which drops nothing")
    if max_user_events is not None and max_user_events < 1:
        raise UsageError(f"--max-user-events is {max_user_events}; it must be at least 1")
    if split not in get_args(SplitBy):
        raise UsageError(f"--split is {split!r}; choose one of {', '.join(get_args(SplitBy))}")
    if event_types and event_column is None:
        raise UsageError("--event-types needs --event-column, the log's column of types of events")
    if cuts is not None and split != "time":
        raise UsageError("--cuts belongs to --split time")
    out = Path(out)
    refuse_existing(out)
    described = _read_catalogue(catalogue, catalogue_item_column or item_column)
    with progress(f"preparing {out}", _NUM_STEPS) as bar:
        columns = Columns(user=user_column, item=item_column, timestamp=timestamp_column, event=event_column)
        log = read_events(events, columns, event_types=event_types or (), drop_invalid=drop_invalid)
        bar.advance()
        cut_times = None if cuts is None else _cut_times(log.timestamps, cuts)
        cleaned = clean_events(
            log.events,
            log.timestamps,
            now_s=time.time() if now_s is None else now_s,
            max_user_events=max_user_events,
        )
        filtered = k_core(cleaned.events, min_events)
        kept = filtered.events
        bar.advance()
        parts = split_by_user(kept, seed) if split == "user" else split_by_time(kept, cut_times)
        bar.advance()
        date_of = log.timestamps.date_of
        prepared: dict[str, JsonValue] = {
            "format": "events",
            "events": str(log.file),
            "user_column": user_column,
            "item_column": item_column,
            "timestamp_column": timestamp_column,
            "timestamp_notation": log.timestamps.notation,
            "first_event": date_of(float(kept.times_E.min())),
            "last_event": date_of(float(kept.times_E.max())),
            "min_events": min_events,
            "max_user_events": DEFAULT_MAX_USER_EVENTS if max_user_events is None else max_user_events,
            "split": split,
        }
        if cleaned.stand_out_bound is not None:
            prepared["stand_out_bound"] = cleaned.stand_out_bound
        if event_column is not None:
            prepared |= {"event_column": event_column, "event_types": list(event_types or ())}
        if parts.cuts is None:
            prepared |= {"split_rule": HASH_RULE, "seed": seed}
        else:
            prepared["cuts"] = [date_of(cut, precise=True) for cut in parts.cuts]
        for example in (*log.examples, *cleaned.examples):  # never into the data set: it may name a user
            _log.info("dropped, %s", example)
        if advice := _advice(cleaned.events, filtered, min_events):
            prepared["advice"] = advice
        dropped = {
            **log.dropped,
            **cleaned.dropped,
            "users_below_min_events": filtered.num_users_dropped,
            "items_below_min_events": filtered.num_items_dropped,
            "events_below_min_events": filtered.num_events_dropped,
            **parts.dropped,
        }
        users = {name: kept.user_ids[parts.users[name]] for name in SPLITS}
        dataset = _write(out, kept.item_ids, parts.sequences, users, prepared, dropped, described)
        bar.advance()
    return dataset


def _advice(events: Events, filtered: Filtered, min_events: int) -> str:
    """Return advice where most items have fewer events than `--min-events`; else an empty text."""
    num_items = np.count_nonzero(np.bincount(events.items_E))
    num_left = len(filtered.events.item_ids)
    share = 1 - num_left / num_items
    if share <= _MANY_ITEMS or min_events <= 2:
        return ""
    return (
        f"--min-events {min_events} drops {share:.0%} of the items ({num_items - num_left:,} of "
        f"{num_items:,}). With --min-events 2, {len(k_core(events, 2).events.item_ids):,} items would stay: "
        "more of them are found, with vectors that rest on fewer events. Items that are dropped can still be "
        "served by their attributes: re4 rebuild --catalogue."
    )


def prepare_sequences(
    files: Mapping[SplitName, Path | str],
    out: Path | str,
    *,
    catalogue: TableSource | None = None,
    catalogue_item_column: str = "item",
) -> Dataset:
    """Prepare a data set from three files that are split already; nothing is filtered.

    Args:
        files: The file of every split: train, valid and test.
        out: The folder to write; it must not exist, or be empty.
        catalogue: Descriptions to join onto the items, as for `prepare_data`.
        catalogue_item_column: The catalogue's column of item ids.

    Raises:
        DataError: The input cannot be used, or `out` is not free.
    """
    out = Path(out)
    refuse_existing(out)
    described = _read_catalogue(catalogue, catalogue_item_column)
    with progress(f"preparing {out}", _NUM_STEPS) as bar:
        given = read_sequences({split: Path(files[split]) for split in SPLITS}, bar.advance)
        prepared: dict[str, JsonValue] = {"format": "sequences"}
        prepared |= {split: str(files[split]) for split in SPLITS}
        dataset = _write(
            out, given.item_ids, given.sequences, given.users, prepared, given.dropped, described
        )
        bar.advance()
    return dataset


def _cut_times(timestamps: Timestamps, cuts: tuple[str, str]) -> tuple[float, float]:
    first, second = timestamps.value_of(cuts[0]), timestamps.value_of(cuts[1])
    if first >= second:
        raise UsageError(f"--cuts {cuts[0]} {cuts[1]}: the first one must lie before the second one")
    return first, second


def _read_catalogue(source: TableSource | None, item_column: str) -> Catalogue | None:
    return None if source is None else read_catalogue(source, item_column, in_memory)


def _write(
    out: Path,
    item_ids: pl.Series,
    sequences: Mapping[SplitName, Sequences],
    users: Mapping[SplitName, pl.Series],
    prepared: Mapping[str, JsonValue],
    dropped: Mapping[str, int],
    catalogue: Catalogue | None,
) -> Dataset:
    ranked = order_items(sequences, len(item_ids))
    items = item_ids[ranked.code_of_row_N].alias("item_id").to_frame()
    noticed: dict[str, int] = {"items_never_in_train": ranked.num_never_in_train}
    if catalogue:
        joined = join_catalogue(items["item_id"], catalogue)
        items = joined.items
        noticed |= joined.noticed
    return write_dataset(
        out,
        items=items,
        sequences=ranked.sequences,
        users=users,
        prepared={
            **prepared,
            "catalogue": str(catalogue.file) if catalogue else None,
            "catalogue_item_column": catalogue.item_column if catalogue else None,
        },
        dropped={**dropped, **noticed},
    )
