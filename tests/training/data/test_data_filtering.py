from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.common.errors import DataError
from re4.training.data.events import Events
from re4.training.data.k_core import k_core


def events_of(pairs: list[tuple[int, int]]) -> Events:
    """Events of dense users and items, numbered by first appearance, sorted by user; time is the place."""
    users = list(dict.fromkeys(user for user, _ in pairs))
    items = list(dict.fromkeys(item for _, item in pairs))
    rows = sorted(
        ((users.index(user), items.index(item), time) for time, (user, item) in enumerate(pairs)),
        key=lambda row: (row[0], row[2]),
    )
    return Events(
        users_E=np.array([row[0] for row in rows], dtype=np.uint32),
        items_E=np.array([row[1] for row in rows], dtype=np.uint32),
        times_E=np.array([row[2] for row in rows], dtype=np.int64),
        user_ids=pl.Series("id", users),
        item_ids=pl.Series("id", items),
    )


def decoded(events: Events) -> list[tuple[int, int, int]]:
    return list(
        zip(
            events.user_ids[events.users_E].to_list(),
            events.item_ids[events.items_E].to_list(),
            events.times_E.tolist(),
            strict=True,
        )
    )


def plain_k_core(rows: list[tuple[int, int, int]], least: int) -> list[tuple[int, int, int]]:
    while True:
        by_user = Counter(user for user, _, _ in rows)
        by_item = Counter(item for _, item, _ in rows)
        kept = [row for row in rows if by_user[row[0]] >= least and by_item[row[1]] >= least]
        if len(kept) == len(rows):
            return kept
        rows = kept


@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=80),
    least=st.integers(1, 5),
)
def test_k_core_against_a_plain_python_one(pairs: list[tuple[int, int]], least: int) -> None:
    events = events_of(pairs)
    before = decoded(events)
    expected = plain_k_core(before, least)
    if not expected:
        with pytest.raises(DataError, match="--min-events"):
            k_core(events, least)
        return
    left = k_core(events, least)
    assert decoded(left.events) == expected
    assert set(left.events.users_E) == set(range(len(left.events.user_ids)))
    assert set(left.events.items_E) == set(range(len(left.events.item_ids)))
    assert left.num_events_dropped == len(before) - len(expected)
    assert left.num_users_dropped == len({row[0] for row in before} - {row[0] for row in expected})
    assert left.num_items_dropped == len({row[1] for row in before} - {row[1] for row in expected})


def test_a_chain_falls_one_link_a_round_and_the_message_shows_each() -> None:
    with pytest.raises(DataError) as caught:
        k_core(events_of([(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]), 2)
    message = str(caught.value)
    assert "3 users, 3 items, 5 events" in message
    assert "2 users, 2 items, 3 events" in message
    assert "0 users, 0 items, 0 events" in message
    assert "at least 2" in message
