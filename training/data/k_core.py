"""The k-core of an event log: every remaining user and item has at least k events.

Dropping rare items can leave users with fewer than k events, and vice versa, so the filter repeats
until nothing changes. The result does not depend on the order of dropping.
"""

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
    steps = [_step(users_E, items_E)]
    while len(users_E):
        keep_E = _frequent(users_E, len(events.user_ids), min_events)
        keep_E &= _frequent(items_E, len(events.item_ids), min_events)
        if keep_E.all():
            break
        users_E, items_E, places_E = users_E[keep_E], items_E[keep_E], places_E[keep_E]
        steps.append(_step(users_E, items_E))
    if not len(users_E):
        raise DataError(
            f"no events are left with at least {min_events} for every user and item; before, and after each "
            f"round of dropping: {'; '.join(steps)}; lower --min-events"
        )
    new_users_E, user_ids = _dense(users_E, events.user_ids)
    new_items_E, item_ids = _dense(items_E, events.item_ids)
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


def _frequent(codes_E: npt.NDArray[np.uint32], num_codes: int, min_events: int) -> npt.NDArray[np.bool_]:
    frequent: npt.NDArray[np.bool_] = (np.bincount(codes_E, minlength=num_codes) >= min_events)[codes_E]
    return frequent


def _step(users_E: npt.NDArray[np.uint32], items_E: npt.NDArray[np.uint32]) -> str:
    num_users, num_items = (np.count_nonzero(np.bincount(codes)) for codes in (users_E, items_E))
    return f"{num_users:,} users, {num_items:,} items, {len(users_E):,} events"


def _dense(codes_E: npt.NDArray[np.uint32], ids: pl.Series) -> tuple[npt.NDArray[np.uint32], pl.Series]:
    """Renumber the remaining codes 0, 1, … in their order."""
    used = np.bincount(codes_E, minlength=len(ids)) > 0
    new_codes = (np.cumsum(used) - 1).astype(np.uint32)
    return new_codes[codes_E], ids.filter(pl.Series(used))
