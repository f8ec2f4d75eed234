"""Hidden items against brute force: never in an answer, which is the best of the rest and never short."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_kind_versions import KIND_SETTINGS, version_of
from small_bundles import SmallVersion, load

from re4.bundle.hidden_ids import HiddenIds
from re4.serving.api.popularity_fallback import popular_items
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.hidden_items import MAX_EXTRA_DEPTH
from re4.serving.retrieval.merging import POLICIES
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import Snapshot

NUM_ITEMS = 300
HISTORY = [4, 9, 30]


@cache
def served() -> tuple[SmallVersion, Snapshot]:
    version = SmallVersion(num_items=NUM_ITEMS, seed=3, has_attributes=True)
    return version, load(version, Path(mkdtemp()))


def hiding(rows: list[int]) -> Snapshot:
    version, snapshot = served()
    return snapshot.with_hidden(HiddenIds(ids=tuple(version.ids[row] for row in rows)))


def ask(snapshot: Snapshot, num: int, **query: object) -> list[int]:
    rows = np.array(HISTORY[::-1])
    (answer,) = snapshot.pipeline.run([Query(history_rows_L=rows, num_candidates=num, **query)])
    found: list[int] = answer.merged.rows_M.tolist()
    return found


@given(
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8),
    st.integers(0, NUM_ITEMS),
    st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5, unique=True),
    st.integers(1, 40),
)
def test_the_best_of_the_rest(some: list[int], num_best: int, excluded: list[int], num: int) -> None:
    """Some anywhere, and so many of the very best: more than a search leaves room for, or all."""
    version, _ = served()
    rows = sorted({*some, *version.best(HISTORY, num_best)})
    found = ask(hiding(rows), num, excluded_rows=np.array(sorted(excluded), np.int64))
    assert found == version.best(HISTORY, num, [*rows, *excluded])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "num_best", [1, MAX_EXTRA_DEPTH, MAX_EXTRA_DEPTH + 1, 3 * MAX_EXTRA_DEPTH, NUM_ITEMS - 7]
)
def test_no_policy_shows_them_or_falls_short(policy: str, num_best: int) -> None:
    version, _ = served()
    rows = version.best(HISTORY, num_best)
    found = ask(hiding(rows), 30, merge_policy=POLICIES[policy])
    assert not set(found) & set(rows)
    assert len(found) == len(set(found)) == min(30, NUM_ITEMS - num_best)


@pytest.mark.parametrize("kind", KIND_SETTINGS)
@pytest.mark.parametrize("few", [0, 1 << 15])
def test_no_index_shows_them_or_falls_short(
    kind: str, few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others searched one by one, and with a selector."""
    monkeypatch.setattr("re4.serving.retrieval.filters.MAX_EXACT_ROWS", few)
    version = version_of(kind)
    snapshot = load(version, tmp_path)
    for num_hidden in (3, MAX_EXTRA_DEPTH + 1, 600):
        rows = version.best(HISTORY, num_hidden)
        hidden = HiddenIds(ids=tuple(version.ids[row] for row in rows))
        found = ask(snapshot.with_hidden(hidden), 50)
        assert not set(found) & set(rows)
        assert len(set(found)) == 50


def test_filters_leave_them_out_too() -> None:
    version, snapshot = served()
    code = snapshot.attributes["colour"].value_codes(["red"]).tolist()[0]
    red = [row for row, colour in enumerate(version.attributes["colour"]) if colour == "red"]
    options = SearchOptions(conditions=(Condition("colour", (code,), False),))
    rows = [row for row in version.best(HISTORY, NUM_ITEMS) if row in set(red)][:4]
    found = ask(hiding(rows), 10, options=options)
    others = [row for row in range(NUM_ITEMS) if row not in set(red) or row in rows]
    assert found == version.best(HISTORY, 10, others)


def test_other_effort_leaves_them_out_too() -> None:
    version, _ = served()
    rows = version.best(HISTORY, 5)
    assert ask(hiding(rows), 10, options=SearchOptions(effort=2.0)) == version.best(HISTORY, 10, rows)


def test_what_was_hidden_comes_back() -> None:
    version, snapshot = served()
    once = hiding(version.best(HISTORY, 5))
    assert ask(once.with_hidden(HiddenIds()), 10) == version.best(HISTORY, 10) == ask(snapshot, 10)
    assert snapshot.with_hidden(HiddenIds(ids=("nobody",))) is snapshot


def test_the_popularity_fall_back_leaves_them_out_and_is_never_short() -> None:
    version, _ = served()
    rows = version.popular_rows[:140].tolist()
    query = Query(history_rows_L=np.empty(0, np.int64), num_candidates=100)
    found = popular_items(query, hiding(rows)).rows_M.tolist()
    assert len(found) == 100
    assert not set(found) & set(rows)
    assert found[:10] == version.popular_rows[140:].tolist()


def test_hidden_items_still_count_as_history() -> None:
    version, _ = served()
    assert ask(hiding(HISTORY), 10) == version.best(HISTORY, 10, HISTORY)
