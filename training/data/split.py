"""Split events into train, valid and test, by user or by time.

A split takes the first events of every chosen user; the first ones of these are the history, the
rest are targets.

Shape suffixes: U users, E events; U1 is U + 1.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import JsonValue

from re4.common.errors import DataError
from re4.training.data.dataset import Sequences
from re4.training.data.events import Events
from re4.training.data.layout import DatasetInfo, SplitName

HASH_RULE = "hash of the user id"
"""The rule of `split_by_user`, as `dataset.json` records it; earlier data sets record no rule: theirs is a
permutation of the users of that log."""
_CHUNK_USERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Split:
    """The sequences of the three splits; item codes in place of item rows."""

    sequences: Mapping[SplitName, Sequences]
    """By split."""
    users: Mapping[SplitName, npt.NDArray[np.int64]]
    """The user codes of every split, rising, in the order of its sequences."""
    dropped: Mapping[str, int]
    """Counts by reason."""
    cuts: tuple[float, float] | None
    """The two cut times of a split by time: an event at a cut lies after it."""


def split_events(events: Events, seed: int, cuts: tuple[float, float] | None) -> Split:
    """Split the events of some of a log's users: by user, or at the cuts by time. A split may be empty."""
    return _split_by_user(events, seed) if cuts is None else _split_by_time(events, cuts)


def split_by_user(events: Events, seed: int) -> Split:
    """Hold out about a tenth of the users for valid and a tenth for test; the others are train.

    The part of a user is a function of its id and the seed alone (`user_parts`), so a user keeps it
    in every log. Of a held-out user's n events, the first ⌊0.8 n⌋ are history. Held-out users with
    one event are dropped.

    Raises:
        DataError: A part is empty.
    """
    split = _split_by_user(events, seed)
    refuse_empty({name: len(users) for name, users in split.users.items()}, len(events.user_ids), "user")
    return split


def _split_by_user(events: Events, seed: int) -> Split:
    offsets_U1 = _offsets(events)
    num_U = np.diff(offsets_U1)
    part_U = user_parts(events.user_ids, seed)
    history_U = num_held_out_history(num_U)
    chosen: dict[SplitName, npt.NDArray[np.bool_]] = {
        "train": part_U > 1,
        "valid": (part_U == 0) & (history_U > 0),
        "test": (part_U == 1) & (history_U > 0),
    }
    sequences: dict[SplitName, Sequences] = {
        "train": _take(events, offsets_U1, chosen["train"], num_U, num_U),
        "valid": _take(events, offsets_U1, chosen["valid"], num_U, history_U),
        "test": _take(events, offsets_U1, chosen["test"], num_U, history_U),
    }
    return Split(
        sequences=sequences,
        users={split: np.flatnonzero(mask_U) for split, mask_U in chosen.items()},
        dropped={"held_out_users_with_one_event": int(((part_U <= 1) & (history_U == 0)).sum())},
        cuts=None,
    )


def user_parts(user_ids: pl.Series, seed: int) -> npt.NDArray[np.int64]:
    """Return the part of each user, 0 to 9: 0 is valid, 1 is test, the others are train.

    With mix the SplitMix64 step (add 0x9E3779B97F4A7C15, then its three shifts and two products,
    modulo 2^64), the part is mix(CRC-32 of the id xor mix(seed)) modulo 10. The id is its UTF-8
    text; an integer id is its decimal text, so 123 and "123" are in the same part. 10^7 users take
    about four seconds.
    """
    crcs_U = np.empty(len(user_ids), np.uint64)
    for start in range(0, len(user_ids), _CHUNK_USERS):
        texts = user_ids[start : start + _CHUNK_USERS].cast(pl.String).cast(pl.Binary).to_list()
        crcs_U[start : start + len(texts)] = np.fromiter(map(zlib.crc32, texts), np.uint64, len(texts))
    mixed_seed = splitmix64(np.array([seed % (1 << 64)], np.uint64))
    return (splitmix64(crcs_U ^ mixed_seed) % np.uint64(10)).astype(np.int64)


def recorded_split(info: DatasetInfo) -> dict[str, JsonValue]:
    """Return the recorded rule of the split, with its seed or cuts; empty for ready-split files."""
    return {
        name: info.prepared[name] for name in ("split", "split_rule", "seed", "cuts") if name in info.prepared
    }


def split_by_time(events: Events, cuts: tuple[float, float] | None = None) -> Split:
    """Cut at two times; by default, about 80, 10 and 10 per cent of the events lie before, between
    and after.

    Train holds every user's events before the first cut. Valid holds the users with events between
    the cuts, test those with events after the second cut: these are the targets, and all earlier
    events the history. Users without history are dropped there.

    Where a log only grows at its end, the default cuts never move back, so that no event that was
    trained on becomes a target of a later log. Dropped users and items, and late events, can move
    them back; given cuts stay.

    Args:
        events: The events.
        cuts: Both times, rising, in the unit of the events' times; None for the default.

    Raises:
        DataError: The events lie at too few distinct times.
    """
    split = _split_by_time(events, cuts or _default_cuts(events))
    refuse_empty({name: len(users) for name, users in split.users.items()}, len(events.user_ids), "time")
    return split


def _split_by_time(events: Events, cuts: tuple[float, float]) -> Split:
    first, second = cuts
    offsets_U1 = _offsets(events)
    num_U = np.diff(offsets_U1)
    before_first_U = np.add.reduceat(events.times_E < first, offsets_U1[:-1], dtype=np.int64)
    before_second_U = np.add.reduceat(events.times_E < second, offsets_U1[:-1], dtype=np.int64)
    in_valid_U, in_test_U = before_second_U > before_first_U, num_U > before_second_U
    chosen: dict[SplitName, npt.NDArray[np.bool_]] = {
        "train": before_first_U > 0,
        "valid": in_valid_U & (before_first_U > 0),
        "test": in_test_U & (before_second_U > 0),
    }
    sequences: dict[SplitName, Sequences] = {
        "train": _take(events, offsets_U1, chosen["train"], before_first_U, before_first_U),
        "valid": _take(events, offsets_U1, chosen["valid"], before_second_U, before_first_U),
        "test": _take(events, offsets_U1, chosen["test"], num_U, before_second_U),
    }
    return Split(
        sequences=sequences,
        users={split: np.flatnonzero(mask_U) for split, mask_U in chosen.items()},
        dropped={
            "valid_users_without_history": int((in_valid_U & (before_first_U == 0)).sum()),
            "test_users_without_history": int((in_test_U & (before_second_U == 0)).sum()),
        },
        cuts=(first, second),
    )


def num_held_out_history(num_events_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count a held-out user's history: ⌊0.8 n⌋ first events (ComiRec's protocol), 0 only for n = 1."""
    return num_events_U * 8 // 10


def cut_places(num_events: int) -> tuple[int, int]:
    """Return the places, in the order of time, of the events whose times are the default cuts."""
    return num_events * 8 // 10, num_events * 9 // 10


def _default_cuts(events: Events) -> tuple[float, float]:
    places = cut_places(events.num_events)
    ordered_E = np.partition(events.times_E, places)
    return ordered_E[places[0]].item(), ordered_E[places[1]].item()


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the first output of SplitMix64 for each state; arithmetic of arrays is modulo 2^64."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _offsets(events: Events) -> npt.NDArray[np.int64]:
    num_U = np.bincount(events.users_E, minlength=len(events.user_ids))
    return np.concatenate(([0], np.cumsum(num_U)))


def _take(
    events: Events,
    offsets_U1: npt.NDArray[np.int64],
    chosen_U: npt.NDArray[np.bool_],
    ends_U: npt.NDArray[np.int64],
    num_history_U: npt.NDArray[np.int64],
) -> Sequences:
    """Take the first `ends_U` events of the chosen users; each has at least one."""
    starts, lengths = offsets_U1[:-1][chosen_U], ends_U[chosen_U]
    # +1 at the start of a taken range, -1 at its end: the running sum is 1 inside and 0 outside.
    marks_E = np.zeros(events.num_events + 1, dtype=np.int8)
    marks_E[starts] += 1
    marks_E[starts + lengths] -= 1
    taken_E = np.cumsum(marks_E[:-1], dtype=np.int8).view(np.bool_)
    return Sequences(
        items_E=events.items_E[taken_E].astype(np.int32),
        offsets_U1=np.concatenate(([0], np.cumsum(lengths))),
        num_history_U=num_history_U[chosen_U].astype(np.int32),
    )


def refuse_empty(num_users: Mapping[SplitName, int], num_all: int, split: Literal["user", "time"]) -> None:
    """Refuse a split without users.

    Raises:
        DataError: A part is empty.
    """
    if empty := [name for name, number in num_users.items() if not number]:
        need = "each takes a tenth of the users, by a hash of the id: try another --seed"
        if split == "time":
            need = "a split by time needs events spread over time and users who come back"
        raise DataError(
            f"{' and '.join(empty)} would have no users out of {num_all:,}; {need}, give more events, "
            "lower --min-events, or choose the other --split"
        )
