"""From an event log to the content of a data set, on this machine: read, clean, filter, split, number."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.console import Bar
from re4.common.errors import UsageError
from re4.training.data.dataset import Sequences
from re4.training.data.event_cleaning import (
    UserBounds,
    clean_events,
    example_texts,
    first_examples,
    latest_time,
    refuse_only_future,
    user_bounds,
    user_histogram,
)
from re4.training.data.events import Columns, read_events
from re4.training.data.k_core import k_core, num_used
from re4.training.data.layout import SPLITS, IdKind, SplitInfo, SplitName, kind_of
from re4.training.data.split import split_by_time, split_by_user
from re4.training.data.tables.open_table import TableSource
from re4.training.data.timestamps import Timestamps
from re4.training.data.writing import Slab

SplitBy = Literal["user", "time"]
NUM_STEPS = 3
"""Steps of the progress bar."""
_MANY_ITEMS = 0.5
"""Share of dropped items above which the summary has advice."""


@dataclass(frozen=True, kw_only=True)
class EventsRequest:
    """The log and the options of `prepare_data`, checked."""

    source: TableSource
    columns: Columns
    event_types: Sequence[str]
    drop_invalid: bool
    min_events: int
    max_user_events: int | None
    split: SplitBy
    seed: int
    cuts: tuple[str, str] | None
    now_s: float


@dataclass(frozen=True, kw_only=True)
class NumberedEvents:
    """Events by item row and by user, as a data set holds them."""

    item_ids: pl.Series
    """By row."""
    num_never_in_train: int
    """Items without an event in train."""
    user_id_kind: IdKind
    splits: Mapping[SplitName, SplitInfo]
    slabs: Iterable[Slab]


@dataclass(frozen=True, kw_only=True)
class PreparedEvents:
    """The content of a data set, but the catalogue. Every engine gives the same one."""

    file: Path | str
    """The log's file or folder, or how a data frame is named."""
    timestamps: Timestamps
    """Their notation."""
    first_and_last: tuple[float, float]
    """The times of the first and of the last event that stayed."""
    stand_out_bound: int | None
    advice: str
    cuts: tuple[float, float] | None
    """Of a split by time."""
    dropped: Mapping[str, int]
    """Counts by reason."""
    examples: Sequence[str]
    """The first dropped events, a line of text each."""
    numbered: NumberedEvents


def prepare_events(request: EventsRequest, bar: Bar) -> PreparedEvents:
    """Prepare a log in the memory of this process.

    Raises:
        DataError: The log cannot be used, or nothing is left of it.
        UsageError: The cuts do not rise.
    """
    log = read_events(
        request.source, request.columns, event_types=request.event_types, drop_invalid=request.drop_invalid
    )
    bar.advance()
    cuts = cut_times(log.timestamps, request.cuts)
    latest = latest_time(log.timestamps, request.now_s)
    users_by_number = user_histogram(log.events, latest)
    bounds = UserBounds(latest=latest, stand_out=None, most=0)
    if users_by_number:
        bounds = user_bounds(users_by_number, latest=latest, max_user_events=request.max_user_events)
    cleaned = clean_events(log.events, bounds)
    examples = example_texts(first_examples([cleaned.examples]), bounds, log.timestamps, log.events.item_ids)
    refuse_only_future(log.timestamps, users_by_number, examples)
    filtered = k_core(cleaned.events, request.min_events)
    kept = filtered.events
    bar.advance()
    split = split_by_user(kept, request.seed) if request.split == "user" else split_by_time(kept, cuts)
    users = {name: kept.user_ids[split.users[name]] for name in SPLITS}
    numbered = number_events(split.sequences, users, kept.item_ids)
    bar.advance()
    return PreparedEvents(
        file=log.file,
        timestamps=log.timestamps,
        first_and_last=(float(kept.times_E.min()), float(kept.times_E.max())),
        stand_out_bound=bounds.stand_out,
        advice=advice(
            request.min_events,
            num_items=num_used(cleaned.events.items_E),
            num_left=len(kept.item_ids),
            num_left_by_two=lambda: len(k_core(cleaned.events, 2).events.item_ids),
        ),
        cuts=split.cuts,
        dropped={
            **log.dropped,
            **cleaned.dropped,
            "users_below_min_events": filtered.num_users_dropped,
            "items_below_min_events": filtered.num_items_dropped,
            "events_below_min_events": filtered.num_events_dropped,
            **split.dropped,
        },
        examples=[*log.examples, *examples],
        numbered=numbered,
    )


def number_events(
    sequences: Mapping[SplitName, Sequences], users: Mapping[SplitName, pl.Series], item_ids: pl.Series
) -> NumberedEvents:
    """Give every item its row.

    Args:
        sequences: By split, with item codes.
        users: The ids of the users of each split.
        item_ids: By code.
    """
    ranked = order_items(sequences, len(item_ids))
    return NumberedEvents(
        item_ids=item_ids[ranked.code_of_row_N],
        num_never_in_train=ranked.num_never_in_train,
        user_id_kind=kind_of(users["train"]),
        splits={split: ranked.sequences[split].info() for split in SPLITS},
        slabs=[{split: (ranked.sequences[split], users[split]) for split in SPLITS}],
    )


def cut_times(timestamps: Timestamps, cuts: tuple[str, str] | None) -> tuple[float, float] | None:
    """Return given cuts in the unit of the log's times.

    Raises:
        UsageError: They do not rise.
        DataError: One is no date.
    """
    if cuts is None:
        return None
    first, second = timestamps.value_of(cuts[0]), timestamps.value_of(cuts[1])
    if first >= second:
        raise UsageError(f"--cuts {cuts[0]} {cuts[1]}: the first one must lie before the second one")
    return first, second


def advice(min_events: int, *, num_items: int, num_left: int, num_left_by_two: Callable[[], int]) -> str:
    """Return advice where most items have fewer events than `--min-events`; else an empty text.

    Args:
        min_events: The bound.
        num_items: Items with an event before the filter.
        num_left: Items after the filter.
        num_left_by_two: Counts the items after a filter with the bound 2.
    """
    share = 1 - num_left / num_items
    if share <= _MANY_ITEMS or min_events <= 2:
        return ""
    return (
        f"--min-events {min_events} drops {share:.0%} of the items ({num_items - num_left:,} of "
        f"{num_items:,}). With --min-events 2, {num_left_by_two():,} items would stay: "
        "more of them are found, with vectors that rest on fewer events. Items that are dropped can still be "
        "served by their attributes: re4 rebuild --catalogue."
    )


@dataclass(frozen=True, kw_only=True)
class OrderedItems:
    """Sequences with item rows in place of item codes: most popular in train first.

    Samplers that draw by popularity then need nothing but row numbers.
    """

    sequences: Mapping[SplitName, Sequences]
    """By split."""
    code_of_row_N: npt.NDArray[np.int64]
    """The item code of every row."""
    num_never_in_train: int
    """Items without an event in train; they have the last rows."""


def order_items(sequences: Mapping[SplitName, Sequences], num_items: int) -> OrderedItems:
    """Order items by falling number of train events; items of equal number keep the order of their codes."""
    counts_N = np.bincount(sequences["train"].items_E, minlength=num_items)
    code_of_row_N, row_of_code_N = item_rows(counts_N)
    return OrderedItems(
        sequences={
            split: replace(sequence, items_E=row_of_code_N[sequence.items_E])
            for split, sequence in sequences.items()
        },
        code_of_row_N=code_of_row_N,
        num_never_in_train=int((counts_N == 0).sum()),
    )


def item_rows(counts_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the code of each row and the row of each code, from the train events of each code."""
    code_of_row_N = np.argsort(-counts_N, kind="stable")
    row_of_code_N = np.empty(len(counts_N), dtype=np.int32)
    row_of_code_N[code_of_row_N] = np.arange(len(counts_N), dtype=np.int32)
    return code_of_row_N, row_of_code_N
