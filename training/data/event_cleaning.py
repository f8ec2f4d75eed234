"""Drop implausible events: from the future, or of a user with more events than a person has.

They are counted, and the first ones are shown as examples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from re4.common.errors import DataError
from re4.training.data.events import Events
from re4.training.data.timestamps import Timestamps

_NUM_SHOWN = 3
_TOLERANCE_S = 86_400
"""Tolerance for wrong clocks and time zones: a day."""


@dataclass(frozen=True, kw_only=True)
class CleanedEvents:
    """The remaining events, and a summary of the dropped ones."""

    events: Events
    dropped: dict[str, int]
    """Counts by reason."""
    examples: list[str]
    """The first dropped events, a line of text each."""


def clean_events(
    events: Events, timestamps: Timestamps, *, now_s: float, max_user_events: int
) -> CleanedEvents:
    """Drop events later than a day from now, then all but the newest events of users with too many.

    Args:
        events: sorted by user and time.
        timestamps: the unit of their times.
        now_s: seconds since 1970.
        max_user_events: the most events of a user that stay. An account with more is a robot or is
            shared, and
            would be a large part of every batch.

    Raises:
        DataError: no event is left, because the timestamps have another meaning.
    """
    latest = (now_s + _TOLERANCE_S) * timestamps.units_per_second
    future_E = events.times_E > latest
    examples = [
        f"from the future: user {events.user_ids[int(events.users_E[place])]!r}, item "
        f"{events.item_ids[int(events.items_E[place])]!r}, {timestamps.date_of(float(events.times_E[place]))}"
        for place in np.flatnonzero(future_E)[:_NUM_SHOWN]
    ]
    if future_E.all():
        raise DataError(
            f"every event lies in the future, its timestamp read as {timestamps.notation} ({examples[0]}): "
            "write timestamps in seconds since 1970 or ISO 8601"
        )
    num_U = np.bincount(events.users_E[~future_E], minlength=len(events.user_ids))
    busy_users = np.flatnonzero(num_U > max_user_events)
    examples += [
        f"too many events: user {events.user_ids[int(user)]!r} has {num_U[user]:,}"
        for user in busy_users[np.argsort(-num_U[busy_users], kind="stable")][:_NUM_SHOWN]
    ]
    # Events are sorted by user and time, so each user's events from the future come last.
    first_U = np.concatenate([[0], np.cumsum(np.bincount(events.users_E, minlength=len(num_U)))[:-1]])
    place_E = np.arange(events.num_events) - first_U[events.users_E]
    old_E = place_E < (num_U - max_user_events)[events.users_E]
    dropped = {
        "events_from_the_future": int(future_E.sum()),
        "users_with_too_many_events": len(busy_users),
        "older_events_of_users_with_too_many": int(old_E.sum()),
    }
    keep_E = ~(future_E | old_E)
    return CleanedEvents(
        events=events if keep_E.all() else _kept(events, keep_E), dropped=dropped, examples=examples
    )


def _kept(events: Events, keep_E: npt.NDArray[np.bool_]) -> Events:
    """Return the kept events; users and items keep their codes, and k-core drops those without events."""
    return Events(
        users_E=events.users_E[keep_E],
        items_E=events.items_E[keep_E],
        times_E=events.times_E[keep_E],
        user_ids=events.user_ids,
        item_ids=events.item_ids,
    )
