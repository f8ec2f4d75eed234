"""Calls that work on a partition of users, a partition of items, or a range of item codes.

Legend: E events, U users, N items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.training.data.dataset import Sequences
from re4.training.data.distributed.reading import ItemSlice, UserSlice
from re4.training.data.event_cleaning import Example, UserBounds, clean_events, user_histogram
from re4.training.data.events import Events, sorted_events
from re4.training.data.k_core import dense, frequent_events, num_used
from re4.training.data.layout import SPLITS, SplitInfo, SplitName
from re4.training.data.split import Split, split_events
from re4.training.data.tables.ids import encode
from re4.training.data.writing import Slab

_NUM_SAMPLES = 256
_NO_ITEMS = pl.Series(dtype=pl.Int64)


class CountChange(NamedTuple):
    """Changes of the numbers of events of some items."""

    codes_N: npt.NDArray[np.uint32]
    changes_N: npt.NDArray[np.int64]


class Partition(NamedTuple):
    """Some users with all of their events, in the order of the log's users."""

    events: Events
    """The item codes are those of the log; it has no item ids."""
    first_U: npt.NDArray[np.int64]
    """The position of the first event of each user in the log."""


class ItemTable(NamedTuple):
    """The items of a partition of items, or of the log, in the order of `first_N`."""

    item_ids: pl.Series
    keys_N: npt.NDArray[np.uint64]
    first_N: npt.NDArray[np.int64]


def gather_items(*slices: ItemSlice) -> tuple[bool, ItemTable]:
    """Return whether two items have the same key, and the items of a partition."""
    table = pl.DataFrame(
        {
            "id": pl.concat([each.item_ids for each in slices]),
            "key": np.concatenate([each.keys_N for each in slices]),
            "first": np.concatenate([each.first_N for each in slices]),
        }
    )
    items = table.group_by("id").agg(pl.col("key").first(), pl.col("first").min()).sort("first")
    keys = items["key"].to_numpy()
    return len(np.unique(keys)) < len(keys), ItemTable(items["id"], keys, items["first"].to_numpy())


def gather_users(
    sorted_keys_N: npt.NDArray[np.uint64],
    codes_N: npt.NDArray[np.uint32],
    latest: float,
    *slices: UserSlice,
) -> tuple[dict[str, Any], Partition]:
    """Return the facts and the events of a partition of users.

    Args:
        sorted_keys_N: The keys of all items, rising.
        codes_N: The code of each key.
        latest: The latest plausible time.
        slices: Of all chunks, in their order.
    """
    codes_U, user_ids = encode(pl.concat([each.user_ids for each in slices]))
    codes, bounds = codes_U.to_numpy(), np.cumsum([0, *(len(each.user_ids) for each in slices)])
    users_E = [codes[start:][each.users_E] for start, each in zip(bounds, slices, strict=False)]
    first_U = np.empty(len(user_ids), np.int64)
    first_U[codes[::-1]] = np.concatenate([each.first_U for each in slices])[::-1]
    keys_E = np.concatenate([each.keys_E for each in slices])
    coded = pl.DataFrame(
        {
            "user": np.concatenate(users_E),
            "item": codes_N[np.searchsorted(sorted_keys_N, keys_E)],
            "timestamp": np.concatenate([each.times_E for each in slices]),
        }
    )
    events, num_duplicates = sorted_events(coded, user_ids, _NO_ITEMS)
    facts = {
        "num_users": len(user_ids),
        "num_duplicates": num_duplicates,
        "users_by_number": user_histogram(events, latest),
    }
    return facts, Partition(events, first_U)


@dataclass(frozen=True, kw_only=True)
class CleanCounts:
    """Facts of a cleaned partition."""

    num_users: int
    """Users with events."""
    num_events: int
    dropped: Mapping[str, int]
    examples: Mapping[str, list[Example]]


def clean_partition(partition: Partition, bounds: UserBounds, ranges: Sequence[int]) -> tuple[Any, ...]:
    """Return the facts, the cleaned partition, and its `CountChange` for each range of item codes."""
    cleaned = clean_events(partition.events, bounds)
    first_U = partition.first_U
    examples = {  # ranked as in the whole log
        reason: [each._replace(rank=_global_rank(each.rank, reason, first_U)) for each in some]
        for reason, some in cleaned.examples.items()
    }
    counts = CleanCounts(
        num_users=num_used(cleaned.events.users_E),
        num_events=cleaned.events.num_events,
        dropped=cleaned.dropped,
        examples=examples,
    )
    changes = _changes(cleaned.events.items_E, 1, ranges)
    return counts, Partition(cleaned.events, first_U), *changes


def _global_rank(rank: tuple[int, int], reason: str, first_U: npt.NDArray[np.int64]) -> tuple[int, int]:
    first, second = rank
    return (int(first_U[first]), second) if first >= 0 else (first, int(first_U[second]))


def _changes(items_E: npt.NDArray[np.uint32], sign: int, ranges: Sequence[int]) -> list[CountChange]:
    codes_N, counts_N = np.unique(items_E, return_counts=True)
    places = np.searchsorted(codes_N, ranges)
    return [CountChange(codes_N[start:stop], sign * counts_N[start:stop]) for start, stop in pairwise(places)]


def count_items(
    start: int, min_events: int, counts_N: npt.NDArray[np.int64], *changes: CountChange
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the number of items with events, the new counts, and which items are frequent.

    Args:
        start: The first code of the range.
        min_events: The least number of events of a frequent item.
        counts_N: The counts before.
        changes: Of all partitions of users.
    """
    counts_N = counts_N.copy()
    for change in changes:
        counts_N[change.codes_N - np.uint32(start)] += change.changes_N
    return int(np.count_nonzero(counts_N)), counts_N, counts_N >= min_events


def drop_infrequent(
    partition: Partition, min_events: int, ranges: Sequence[int], *is_frequent: npt.NDArray[np.bool_]
) -> tuple[Any, ...]:
    """Do one round of the k-core: return users, events and dropped events, the partition, and its changes."""
    events = partition.events
    keep_E = frequent_events(
        events.users_E, events.items_E, len(events.user_ids), np.concatenate(is_frequent), min_events
    )
    num_dropped = len(keep_E) - int(np.count_nonzero(keep_E))
    left = events
    if num_dropped:
        left = replace(
            events,
            users_E=events.users_E[keep_E],
            items_E=events.items_E[keep_E],
            times_E=events.times_E[keep_E],
        )
    return (
        (num_used(left.users_E), left.num_events, num_dropped),
        Partition(left, partition.first_U),
        *_changes(events.items_E[~keep_E], -1, ranges),
    )


class TimeSample(NamedTuple):
    """Times at even distances in the order of time, the first and the last one included."""

    num_events: int
    times: npt.NDArray[Any]

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """The place of each time."""
        return np.linspace(0, self.num_events - 1, len(self.times)).astype(np.int64)


def survey_times(partition: Partition) -> TimeSample:
    """Return a sample of the times of a partition."""
    times_E = np.sort(partition.events.times_E)
    sample = TimeSample(len(times_E), times_E[: _NUM_SAMPLES if len(times_E) else 0])
    return sample._replace(times=times_E[sample.places])


def time_bounds(place: int, samples: Sequence[TimeSample]) -> tuple[Any, Any]:
    """Return two times; that of the event at a place in the order of time is one of them, or between them.

    Args:
        place: In the events of all partitions, from 0.
        samples: Of each partition that has events.
    """
    times = np.unique(np.concatenate([each.times for each in samples]))
    most_earlier, least_until = np.zeros(len(times), np.int64), np.zeros(len(times), np.int64)
    for each in samples:
        ends = np.append(each.places, each.num_events)
        most_earlier += ends[np.searchsorted(each.times, times, side="left")]
        least_until += np.append(0, each.places + 1)[np.searchsorted(each.times, times, side="right")]
    low = np.flatnonzero(most_earlier <= place)[-1]
    high = np.flatnonzero(least_until > place)[0]
    return times[low].item(), times[high].item()


def count_times(partition: Partition, low: float, high: float) -> tuple[int, Any, Any]:
    """Return the number of earlier events, the times from `low` to `high`, and the events of each of them."""
    times_E = partition.events.times_E
    inside = (times_E >= low) & (times_E <= high)
    return (int(np.count_nonzero(times_E < low)), *np.unique(times_E[inside], return_counts=True))


class SplitPartition(NamedTuple):
    """The split users of a partition."""

    split: Split
    user_ids: pl.Series
    first_U: npt.NDArray[np.int64]


def split_partition(
    partition: Partition, seed: int, cuts: tuple[float, float] | None, ranges: Sequence[int]
) -> tuple[Any, ...]:
    """Return the facts, the split users, and the `CountChange` of train events of each range."""
    events = partition.events
    users_E, user_ids = dense(events.users_E, events.user_ids)
    first_U = partition.first_U[np.bincount(events.users_E, minlength=len(events.user_ids)) > 0]
    split = split_events(replace(events, users_E=users_E, user_ids=user_ids), seed, cuts)
    step = max(1, events.num_events // _NUM_SAMPLES)
    facts = {
        "num_users": len(user_ids),
        "dropped": split.dropped,
        "infos": {name: split.sequences[name].info() for name in SPLITS},
        "samples": first_U[users_E[::step]],
        "weight": step,
    }
    changes = _changes(split.sequences["train"].items_E.view(np.uint32), 1, ranges)
    return facts, SplitPartition(split, user_ids, first_U), *changes


class SlabPiece(NamedTuple):
    """The users of a split of a partition that belong to a slab."""

    first_U: npt.NDArray[np.int64]
    sequences: Sequences
    """With item rows."""
    user_ids: pl.Series


def cut_partition(found: SplitPartition, bounds: Sequence[int], row_of_code_N: npt.NDArray[np.int32]) -> Any:
    """Return the pieces of each slab.

    Args:
        found: The split users.
        bounds: The least position of the first event of the users of each slab but the first one.
        row_of_code_N: The rows of items.
    """
    pieces: list[dict[SplitName, SlabPiece]] = [{} for _ in range(len(bounds) + 1)]
    for name in SPLITS:
        sequences, users = found.split.sequences[name], found.split.users[name]
        first_U = found.first_U[users]
        rows_E = row_of_code_N[sequences.items_E]
        places = [0, *np.searchsorted(first_U, bounds), len(users)]
        for piece, (start, stop) in zip(pieces, pairwise(places), strict=True):
            ends = sequences.offsets_U1[start : stop + 1]
            piece[name] = SlabPiece(
                first_U[start:stop],
                Sequences(
                    items_E=rows_E[ends[0] : ends[-1]],
                    offsets_U1=ends - ends[0],
                    num_history_U=sequences.num_history_U[start:stop],
                ),
                found.user_ids[users[start:stop]],
            )
    return tuple(pieces) if len(pieces) > 1 else pieces[0]


def merge_slab(*pieces: Mapping[SplitName, SlabPiece]) -> Slab:
    """Return the users of a slab, in the order of their first events."""
    return {name: _merged([piece[name] for piece in pieces]) for name in SPLITS}


def _merged(pieces: Sequence[SlabPiece]) -> tuple[Sequences, pl.Series]:
    order_U = np.argsort(np.concatenate([each.first_U for each in pieces]), kind="stable")
    lengths_U = np.concatenate([np.diff(each.sequences.offsets_U1) for each in pieces])
    starts_U = np.cumsum(lengths_U) - lengths_U
    new_lengths_U = lengths_U[order_U]
    offsets_U1 = np.concatenate(([0], np.cumsum(new_lengths_U)))
    places_E = np.repeat(starts_U[order_U] - offsets_U1[:-1], new_lengths_U) + np.arange(offsets_U1[-1])
    merged = Sequences(
        items_E=np.concatenate([each.sequences.items_E for each in pieces])[places_E],
        offsets_U1=offsets_U1,
        num_history_U=np.concatenate([each.sequences.num_history_U for each in pieces])[order_U],
    )
    return merged, pl.concat([each.user_ids for each in pieces])[order_U]


def sum_infos(infos: Sequence[Mapping[SplitName, SplitInfo]]) -> dict[SplitName, SplitInfo]:
    """Add the counts of splits of partitions."""
    return {
        name: SplitInfo(
            num_users=sum(each[name].num_users for each in infos),
            num_events=sum(each[name].num_events for each in infos),
            num_targets=sum(each[name].num_targets for each in infos),
        )
        for name in SPLITS
    }
