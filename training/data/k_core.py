"""The k-core of an event log: every remaining user and item has at least k events.

Dropping rare items can leave users with fewer than k events, and vice versa, so the filter repeats
until nothing changes. The result does not depend on the order of dropping.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.errors import DataError
from re4.training.data.events import Events


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """The remaining events, with dense codes, and the counts of dropped ones."""

    events: Events
    """The remaining events; users, items and events keep their order."""
    num_users_dropped: int
    """Users with fewer than k events among the remaining items."""
    num_items_dropped: int
    """Items with fewer than k events among the remaining users."""
    num_events_dropped: int
    """Events of dropped users and items."""


def k_core(events: Events, min_events: int) -> Filtered:
    """Keep users and items with at least `min_events` events, repeated until nothing changes.

    Raises:
        DataError: Nothing is left; the message has the counts after every round.
    """
    users_E, items_E = events.users_E, events.items_E
    places_E = np.arange(events.num_events)
    counts_N = np.bincount(items_E, minlength=len(events.item_ids))
    steps = [round_counts(num_used(users_E), int(np.count_nonzero(counts_N)), len(users_E))]
    while len(users_E):
        keep_E = frequent_events(users_E, items_E, len(events.user_ids), counts_N >= min_events, min_events)
        if keep_E.all():
            break
        users_E, items_E, places_E = users_E[keep_E], items_E[keep_E], places_E[keep_E]
        counts_N = np.bincount(items_E, minlength=len(events.item_ids))
        steps.append(round_counts(num_used(users_E), int(np.count_nonzero(counts_N)), len(users_E)))
    refuse_nothing_left(len(users_E), min_events, steps)
    new_users_E, user_ids = dense(users_E, events.user_ids)
    new_items_E, item_ids = dense(items_E, events.item_ids)
    return Filtered(
        events=Events(
            users_E=new_users_E,
            items_E=new_items_E,
            times_E=events.times_E[places_E],
            user_ids=user_ids,
            item_ids=item_ids,
        ),
        num_users_dropped=len(events.user_ids) - len(user_ids),
        num_items_dropped=len(events.item_ids) - len(item_ids),
        num_events_dropped=events.num_events - len(users_E),
    )


def frequent_events(
    users_E: npt.NDArray[np.uint32],
    items_E: npt.NDArray[np.uint32],
    num_users: int,
    is_frequent_N: npt.NDArray[np.bool_],
    min_events: int,
) -> npt.NDArray[np.bool_]:
    """Return which events stay in one round: of users with enough events here, and of frequent items."""
    keep_E: npt.NDArray[np.bool_] = (np.bincount(users_E, minlength=num_users) >= min_events)[users_E]
    keep_E &= is_frequent_N[items_E]
    return keep_E


def num_used(codes_E: npt.NDArray[np.uint32]) -> int:
    """Count the distinct codes."""
    return int(np.count_nonzero(np.bincount(codes_E)))


def round_counts(num_users: int, num_items: int, num_events: int) -> str:
    """Describe the state after a round."""
    return f"{num_users:,} users, {num_items:,} items, {num_events:,} events"


def refuse_nothing_left(num_events: int, min_events: int, steps: Sequence[str]) -> None:
    """Refuse a log of which nothing is left.

    Raises:
        DataError: Nothing is; the message has the counts after every round.
    """
    if not num_events:
        raise DataError(
            f"no events are left with at least {min_events} for every user and item; before, and after each "
            f"round of dropping: {'; '.join(steps)}; lower --min-events"
        )


def dense(codes_E: npt.NDArray[np.uint32], ids: pl.Series) -> tuple[npt.NDArray[np.uint32], pl.Series]:
    """Renumber the remaining codes 0, 1, … in their order."""
    used = np.bincount(codes_E, minlength=len(ids)) > 0
    new_codes = (np.cumsum(used) - 1).astype(np.uint32)
    return new_codes[codes_E], ids.filter(pl.Series(used))
