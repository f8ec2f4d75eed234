"""Split events into train, valid and test, by user or by time.

A split takes the first events of every chosen user; the first ones of these are the history, the
rest are targets.

Shape suffixes: U users, E events; U1 is U + 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from re4.common.errors import DataError
from re4.training.data.dataset import Sequences
from re4.training.data.events import Events
from re4.training.data.layout import SplitName


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


def split_by_user(events: Events, seed: int) -> Split:
    """Draw a tenth of the users for valid and a tenth for test, with a seed; the others are train.

    Of a held-out user's n events, the first ⌊0.8 n⌋ are history. Held-out users with one event are
    dropped.

    Raises:
        DataError: There are too few users.
    """
    offsets_U1 = _offsets(events)
    num_U = np.diff(offsets_U1)
    num_users = len(num_U)
    num_held_out = max(1, round(num_users / 10))
    shuffled_U = np.random.default_rng(seed).permutation(num_users)
    part_U = np.zeros(num_users, dtype=np.int8)
    part_U[shuffled_U[:num_held_out]] = 1
    part_U[shuffled_U[num_held_out : 2 * num_held_out]] = 2
    history_U = num_held_out_history(num_U)
    chosen: dict[SplitName, npt.NDArray[np.bool_]] = {
        "train": part_U == 0,
        "valid": (part_U == 1) & (history_U > 0),
        "test": (part_U == 2) & (history_U > 0),
    }
    _refuse_empty(chosen, "8:1:1 by user needs 10 users or more", num_users)
    sequences: dict[SplitName, Sequences] = {
        "train": _take(events, offsets_U1, chosen["train"], num_U, num_U),
        "valid": _take(events, offsets_U1, chosen["valid"], num_U, history_U),
        "test": _take(events, offsets_U1, chosen["test"], num_U, history_U),
    }
    return Split(
        sequences=sequences,
        users={split: np.flatnonzero(mask_U) for split, mask_U in chosen.items()},
        dropped={"held_out_users_with_one_event": int(((part_U > 0) & (history_U == 0)).sum())},
        cuts=None,
    )


def split_by_time(events: Events) -> Split:
    """Cut at two times, so that about 80, 10 and 10 per cent of the events lie before, between and
    after.

    Train holds every user's events before the first cut. Valid holds the users with events between
    the cuts, test those with events after the second cut: these are the targets, and all earlier
    events the history. Users without history are dropped there.

    Raises:
        DataError: The events lie at too few distinct times.
    """
    offsets_U1 = _offsets(events)
    num_U = np.diff(offsets_U1)
    places = (events.num_events * 8 // 10, events.num_events * 9 // 10)
    ordered_E = np.partition(events.times_E, places)
    first, second = ordered_E[places[0]], ordered_E[places[1]]
    del ordered_E
    before_first_U = np.add.reduceat(events.times_E < first, offsets_U1[:-1], dtype=np.int64)
    before_second_U = np.add.reduceat(events.times_E < second, offsets_U1[:-1], dtype=np.int64)
    in_valid_U, in_test_U = before_second_U > before_first_U, num_U > before_second_U
    chosen: dict[SplitName, npt.NDArray[np.bool_]] = {
        "train": before_first_U > 0,
        "valid": in_valid_U & (before_first_U > 0),
        "test": in_test_U & (before_second_U > 0),
    }
    _refuse_empty(chosen, "a split by time needs events spread over time and users who come back", len(num_U))
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
        cuts=(float(first), float(second)),
    )


def num_held_out_history(num_events_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count a held-out user's history: ⌊0.8 n⌋ first events (ComiRec's protocol), 0 only for n = 1."""
    return num_events_U * 8 // 10


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


def _refuse_empty(chosen: Mapping[SplitName, npt.NDArray[np.bool_]], need: str, num_users: int) -> None:
    empty = [split for split, mask_U in chosen.items() if not mask_U.any()]
    if empty:
        raise DataError(
            f"{' and '.join(empty)} would have no users out of {num_users:,}; {need}: give more events, "
            "lower --min-events, or choose the other --split"
        )
