"""From input files to a prepared data set on disk: the steps in order, and what to write down about them.

It knows nothing of the terminal: it calls `advance` after every step.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import JsonValue

from re4.common.errors import UsageError
from re4.training.data.catalogue import Catalogue, describe_items
from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.event_cleaning import drop_oddities
from re4.training.data.events import Columns, read_events
from re4.training.data.item_order import rank_items
from re4.training.data.k_core import k_core
from re4.training.data.layout import SPLITS, SplitName
from re4.training.data.sequences import read_sequences
from re4.training.data.split import split_by_time, split_by_user
from re4.training.data.writing import refuse_existing, write_dataset

SplitBy = Literal["user", "time"]
NUM_STEPS = 4


def prepare_events(
    file: Path,
    out: Path,
    *,
    columns: Columns,
    catalogue: Catalogue | None,
    min_events: int,
    max_user_events: int,
    split_by: SplitBy,
    seed: int,
    now_s: float,
    advance: Callable[[], None],
) -> Dataset:
    """Prepare a data set from an event log.

    Args:
        file: The event log.
        out: The folder to write; it must not exist, or be empty.
        columns: The names of its columns.
        catalogue: Descriptions to join onto the items.
        min_events: Users and items with fewer events are dropped, until none are left; 1 drops nothing.
        max_user_events: Of users with more, only the newest so many events stay.
        split_by: How train, valid and test are told apart.
        seed: Draws the held-out users of a split by user.
        now_s: Seconds since 1970; events more than a day later are dropped.
        advance: Called after each of the `NUM_STEPS` steps.

    Raises:
        DataError: The input cannot be used, nothing is left of it, or `out` is not free.
        UsageError: `min_events` or `max_user_events` is below 1.
    """
    if min_events < 1:
        raise UsageError(f"--min-events is {min_events}; it must be at least 1, which drops nothing")
    if max_user_events < 1:
        raise UsageError(f"--max-user-events is {max_user_events}; it must be at least 1")
    refuse_existing(out)
    log = read_events(file, columns)
    advance()
    cleaned = drop_oddities(log.events, log.timestamps, now_s=now_s, max_user_events=max_user_events)
    filtered = k_core(cleaned.events, min_events)
    events = filtered.events
    advance()
    split = split_by_user(events, seed) if split_by == "user" else split_by_time(events)
    advance()
    date_of = log.timestamps.date_of
    prepared: dict[str, JsonValue] = {
        "format": "events",
        "events": str(file),
        "user_column": columns.user,
        "item_column": columns.item,
        "timestamp_column": columns.timestamp,
        "timestamp_notation": log.timestamps.notation,
        "first_event": date_of(float(events.times_E.min())),
        "last_event": date_of(float(events.times_E.max())),
        "min_events": min_events,
        "max_user_events": max_user_events,
        "split": split_by,
    }
    if split.cuts is None:
        prepared["seed"] = seed
    else:
        prepared["cuts"] = [date_of(cut) for cut in split.cuts]
    if cleaned.examples:
        prepared["examples_of_what_was_dropped"] = list(cleaned.examples)
    dropped = {
        "duplicate_events": log.num_duplicates,
        **cleaned.dropped,
        "users_below_min_events": filtered.num_users_dropped,
        "items_below_min_events": filtered.num_items_dropped,
        "events_below_min_events": filtered.num_events_dropped,
        **split.dropped,
    }
    users = {name: events.user_ids[split.users[name]] for name in SPLITS}
    dataset = _write(out, events.item_ids, split.sequences, users, prepared, dropped, catalogue)
    advance()
    return dataset


def prepare_sequences(
    files: Mapping[SplitName, Path],
    out: Path,
    *,
    catalogue: Catalogue | None,
    advance: Callable[[], None],
) -> Dataset:
    """Prepare a data set from three files that are split already; nothing is filtered.

    Args:
        files: The file of every split.
        out: The folder to write; it must not exist, or be empty.
        catalogue: Descriptions to join onto the items.
        advance: Called after each of the `NUM_STEPS` steps.

    Raises:
        DataError: The input cannot be used, or `out` is not free.
    """
    refuse_existing(out)
    given = read_sequences(files, advance)
    prepared: dict[str, JsonValue] = {"format": "sequences"}
    prepared |= {split: str(files[split]) for split in SPLITS}
    dataset = _write(out, given.item_ids, given.sequences, given.users, prepared, given.dropped, catalogue)
    advance()
    return dataset


def _write(
    out: Path,
    item_ids: pl.Series,
    sequences: Mapping[SplitName, Sequences],
    users: Mapping[SplitName, pl.Series],
    prepared: Mapping[str, JsonValue],
    dropped: Mapping[str, int],
    catalogue: Catalogue | None,
) -> Dataset:
    ranked = rank_items(sequences, len(item_ids))
    items = item_ids[ranked.code_of_row_N].alias("item_id").to_frame()
    noticed: dict[str, int] = {"items_never_in_train": ranked.num_never_in_train}
    if catalogue:
        joined = describe_items(items["item_id"], catalogue)
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
