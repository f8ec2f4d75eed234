"""The cache of recent look-ups is right and bounded; unknown ids do not grow it."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from re4.bundle.ids import recent_rows
from re4.bundle.ids.recent_rows import RecentRows


class Rows:
    """The row of "7" is 7; an id that is not a number is unknown. Records the looked-up ids."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, ids: Sequence[str]) -> NDArray[np.int64]:
        self.asked.append(list(ids))
        return np.array([int(id_) if id_.isdecimal() else -1 for id_ in ids], np.int64)


@given(st.lists(st.lists(st.sampled_from([*map(str, range(9)), "x", ""]), max_size=6), max_size=20))
def test_rows_are_those_of_the_look_up(calls: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_rows, "_MAX_IDS", 4)
        patch.setattr(recent_rows, "_MAX_CACHED_CALL", 5)
        recent = RecentRows(Rows())
        for ids in calls:
            rows = recent(ids)
            assert rows.dtype == np.int64
            assert rows.tolist() == Rows()(ids).tolist()
            assert len(recent._newest) <= 5
            assert len(recent._earlier) <= 5


def test_an_id_is_looked_up_once() -> None:
    rows = Rows()
    recent = RecentRows(rows)
    recent(["1", "2"])
    recent(["2", "3", "1"])
    assert rows.asked == [["1", "2"], ["3"]]


def test_ids_in_use_outlive_those_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_rows, "_MAX_IDS", 4)
    rows = Rows()
    recent = RecentRows(rows)
    for number in range(100):
        recent(["0", str(number)])
    assert sum("0" in asked for asked in rows.asked) == 1
    assert recent(["1"]).tolist() == [1]
    assert rows.asked[-1] == ["1"]


def test_unknown_ids_are_not_kept() -> None:
    recent = RecentRows(Rows())
    assert recent([f"stranger {number}" for number in range(4000)]).max() == -1
    assert not recent._newest


def test_bulk_work_drives_nothing_out() -> None:
    recent = RecentRows(Rows())
    recent(["1"])
    recent([str(number) for number in range(100_000)])
    assert recent._newest == {"1": 1}
