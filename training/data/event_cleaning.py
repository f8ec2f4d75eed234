"""Drop implausible events: from the future, or of a user with more events than a person has.

They are counted, and the first ones are shown as examples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from re4.common.errors import DataError
from re4.training.data import DEFAULT_MAX_USER_EVENTS
from re4.training.data.events import Events
from re4.training.data.timestamps import Timestamps

_NUM_SHOWN = 3
_TOLERANCE_S = 86_400
"""Tolerance for wrong clocks and time zones: a day."""
STAND_OUT_FACTOR = 10
"""A user with this multiple of the 99th percentile of events a user stands out …"""
STAND_OUT_EVENTS = 1_000
"""… if it also has more events than this."""


@dataclass(frozen=True, kw_only=True)
class CleanedEvents:
    """The remaining events, and a summary of the dropped ones."""

    events: Events
    dropped: dict[str, int]
    """Counts by reason."""
    examples: list[str]
    """The first dropped events, a line of text each."""
    stand_out_bound: int | None
    """Users with more events stand out, and were dropped; None where a bound was given."""


def clean_events(
    events: Events, timestamps: Timestamps, *, now_s: float, max_user_events: int | None
) -> CleanedEvents:
    """Drop events later than a day from now, then robots' events, before anything is counted.

    Without a given bound, users that stand out are dropped: those with more than `STAND_OUT_FACTOR`
    times the 99th percentile of events a user, and more than `STAND_OUT_EVENTS`. The events of a
    robot keep items alive that no person chose. Of the others, the newest `DEFAULT_MAX_USER_EVENTS`
    events stay.

    Args:
        events: sorted by user and time.
        timestamps: the unit of their times.
        now_s: seconds since 1970.
        max_user_events: the most events of a user that stay, in place of both rules.

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
    bound, stands_out_U = None, np.zeros(len(num_U), np.bool_)
    if max_user_events is None:
        bound = _stand_out_bound(num_U)
        stands_out_U = num_U > bound
        examples += _busiest(events, num_U, stands_out_U, f"stands out (more than {bound:,} events): ")
    most = DEFAULT_MAX_USER_EVENTS if max_user_events is None else max_user_events
    is_busy_U = ~stands_out_U & (num_U > most)
    examples += _busiest(events, num_U, is_busy_U, "too many events: ")
    # Events are sorted by user and time, so each user's events from the future come last.
    first_U = np.concatenate([[0], np.cumsum(np.bincount(events.users_E, minlength=len(num_U)))[:-1]])
    place_E = np.arange(events.num_events) - first_U[events.users_E]
    robot_E = stands_out_U[events.users_E] & ~future_E
    old_E = (place_E < (num_U - most)[events.users_E]) & ~robot_E
    dropped = {
        "events_from_the_future": int(future_E.sum()),
        "users_that_stand_out": int(stands_out_U.sum()),
        "events_of_users_that_stand_out": int(robot_E.sum()),
        "users_with_too_many_events": int(is_busy_U.sum()),
        "older_events_of_users_with_too_many": int(old_E.sum()),
    }
    keep_E = ~(future_E | robot_E | old_E)
    return CleanedEvents(
        events=events if keep_E.all() else _kept(events, keep_E),
        dropped=dropped,
        examples=examples,
        stand_out_bound=bound,
    )


def _stand_out_bound(num_U: npt.NDArray[np.int64]) -> int:
    usual = int(np.quantile(num_U[num_U > 0], 0.99, method="higher"))
    return max(STAND_OUT_EVENTS, STAND_OUT_FACTOR * usual)


def _busiest(
    events: Events, num_U: npt.NDArray[np.int64], chosen_U: npt.NDArray[np.bool_], words: str
) -> list[str]:
    """Describe the first of the chosen users, the one with most events first."""
    users = np.flatnonzero(chosen_U)
    return [
        f"{words}user {events.user_ids[int(user)]!r} has {num_U[user]:,} events"
        for user in users[np.argsort(-num_U[users], kind="stable")][:_NUM_SHOWN]
    ]


def _kept(events: Events, keep_E: npt.NDArray[np.bool_]) -> Events:
    """Return the kept events; users and items keep their codes, and k-core drops those without events."""
    return Events(
        users_E=events.users_E[keep_E],
        items_E=events.items_E[keep_E],
        times_E=events.times_E[keep_E],
        user_ids=events.user_ids,
        item_ids=events.item_ids,
    )
