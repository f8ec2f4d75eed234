"""Drop implausible events: from the future, or of a user with more events than a person has.

They are counted, and the first ones are shown as examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.errors import DataError
from re4.training.data import DEFAULT_MAX_USER_EVENTS
from re4.training.data.events import Events
from re4.training.data.timestamps import Timestamps

_NUM_SHOWN = 3
_FUTURE = "from the future"
_STANDS_OUT = "stands out"
_BUSY = "too many events"
_TOLERANCE_S = 86_400
"""Tolerance for wrong clocks and time zones: a day."""
STAND_OUT_FACTOR = 10
"""A user with this multiple of the 99th percentile of events a user stands out …"""
STAND_OUT_EVENTS = 1_000
"""… if it also has more events than this."""


class Example(NamedTuple):
    """One dropped event from the future, or one user with too many events."""

    rank: tuple[int, int]
    """Examples of lower rank are shown first."""
    user_id: str | int
    item: int
    """The item's code; -1 for a user."""
    value: float
    """The time of the event, or the user's number of events."""


@dataclass(frozen=True, kw_only=True)
class UserBounds:
    """The bounds of events that are plausible."""

    latest: float
    """The latest time."""
    stand_out: int | None
    """Users with more events are dropped; None for no bound."""
    most: int
    """Of the others, this number of newest events stays."""


@dataclass(frozen=True, kw_only=True)
class CleanedEvents:
    """The remaining events, and a summary of the dropped ones."""

    events: Events
    dropped: dict[str, int]
    """Counts by reason."""
    examples: Mapping[str, list[Example]]
    """The first dropped ones of each reason."""


def clean_events(events: Events, bounds: UserBounds) -> CleanedEvents:
    """Drop events later than a bound, then robots' events, before anything is counted.

    Users that stand out are dropped (`stand_out_bound`). The events of a robot keep items alive that no
    person chose. Of the others, the newest events stay.

    Args:
        events: sorted by user and time. Some of all users of a log are enough.
        bounds: of the whole log.
    """
    future_E = events.times_E > bounds.latest
    num_U = _plausible_counts(events, future_E)
    stands_out_U = np.zeros(len(num_U), np.bool_) if bounds.stand_out is None else num_U > bounds.stand_out
    is_busy_U = ~stands_out_U & (num_U > bounds.most)
    examples = {
        _FUTURE: [
            Example(
                (int(events.users_E[place]), int(place)),
                events.user_ids[int(events.users_E[place])],
                int(events.items_E[place]),
                events.times_E[place].item(),
            )
            for place in np.flatnonzero(future_E)[:_NUM_SHOWN]
        ],
        _STANDS_OUT: _busiest(events, num_U, stands_out_U),
        _BUSY: _busiest(events, num_U, is_busy_U),
    }
    # Events are sorted by user and time, so each user's events from the future come last.
    first_U = np.concatenate([[0], np.cumsum(np.bincount(events.users_E, minlength=len(num_U)))[:-1]])
    place_E = np.arange(events.num_events) - first_U[events.users_E]
    robot_E = stands_out_U[events.users_E] & ~future_E
    old_E = (place_E < (num_U - bounds.most)[events.users_E]) & ~robot_E
    dropped = {
        "events_from_the_future": int(future_E.sum()),
        "users_that_stand_out": int(stands_out_U.sum()),
        "events_of_users_that_stand_out": int(robot_E.sum()),
        "users_with_too_many_events": int(is_busy_U.sum()),
        "older_events_of_users_with_too_many": int(old_E.sum()),
    }
    keep_E = ~(future_E | robot_E | old_E)
    return CleanedEvents(
        events=events if keep_E.all() else _kept(events, keep_E), dropped=dropped, examples=examples
    )


def latest_time(timestamps: Timestamps, now_s: float) -> float:
    """Return the latest plausible time: a day after `now_s`, seconds since 1970."""
    return (now_s + _TOLERANCE_S) * timestamps.units_per_second


def user_histogram(events: Events, latest: float) -> dict[int, int]:
    """Count the users by their number of plausible events. Histograms of some users each add up."""
    num_U = _plausible_counts(events, events.times_E > latest)
    users_by_number = np.bincount(num_U[num_U > 0])
    numbers = np.flatnonzero(users_by_number)
    return dict(zip(numbers.tolist(), users_by_number[numbers].tolist(), strict=True))


def user_bounds(
    users_by_number: Mapping[int, int], *, latest: float, max_user_events: int | None
) -> UserBounds:
    """Return the bounds of a log.

    Args:
        users_by_number: The histogram of all users.
        latest: The latest plausible time.
        max_user_events: The most events of a user that stay, in place of both rules; None for these: users
            stand out with more than `STAND_OUT_FACTOR` times the 99th percentile of events a user, and more
            than `STAND_OUT_EVENTS`; of the others, `DEFAULT_MAX_USER_EVENTS` events stay.
    """
    if max_user_events is not None:
        return UserBounds(latest=latest, stand_out=None, most=max_user_events)
    numbers = sorted(users_by_number)
    ends = np.cumsum([users_by_number[number] for number in numbers])
    place = np.ceil((ends[-1] - 1) * 0.99)  # as np.quantile with the method "higher"
    usual = numbers[int(np.searchsorted(ends, place, side="right"))]
    bound = max(STAND_OUT_EVENTS, STAND_OUT_FACTOR * usual)
    return UserBounds(latest=latest, stand_out=bound, most=DEFAULT_MAX_USER_EVENTS)


def refuse_only_future(
    timestamps: Timestamps, users_by_number: Mapping[int, int], examples: Sequence[str]
) -> None:
    """Refuse a log whose every event is from the future.

    Raises:
        DataError: No event is left, because the timestamps have another meaning.
    """
    if not users_by_number:
        raise DataError(
            f"every event lies in the future, its timestamp read as {timestamps.notation} ({examples[0]}): "
            "write timestamps in seconds since 1970 or ISO 8601"
        )


def first_examples(some: Iterable[Mapping[str, list[Example]]]) -> dict[str, list[Example]]:
    """Return the first examples of each reason, of those of some parts of the events."""
    found: dict[str, list[Example]] = {}
    for each in some:
        for reason, examples in each.items():
            found[reason] = sorted([*found.get(reason, []), *examples])[:_NUM_SHOWN]
    return found


def example_texts(
    examples: Mapping[str, list[Example]], bounds: UserBounds, timestamps: Timestamps, item_ids: pl.Series
) -> list[str]:
    """Describe examples, a line of text each."""
    words = {
        _STANDS_OUT: f"stands out (more than {bounds.stand_out or 0:,} events)",
        _BUSY: "too many events",
    }
    return [
        f"{reason}: user {each.user_id!r}, item {item_ids[each.item]!r}, {timestamps.date_of(each.value)}"
        if reason == _FUTURE
        else f"{words[reason]}: user {each.user_id!r} has {each.value:,} events"
        for reason, some in examples.items()
        for each in some
    ]


def _plausible_counts(events: Events, future_E: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.bincount(events.users_E[~future_E], minlength=len(events.user_ids))


def _busiest(events: Events, num_U: npt.NDArray[np.int64], chosen_U: npt.NDArray[np.bool_]) -> list[Example]:
    """Return the first of the chosen users, the one with most events first."""
    users = np.flatnonzero(chosen_U)
    return [
        Example((-int(num_U[user]), int(user)), events.user_ids[int(user)], -1, int(num_U[user]))
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
