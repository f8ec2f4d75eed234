"""The items that a filter allows, as rows and as a bitmap; the cache of them is bounded."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.serving.retrieval.filter_cache import FilterCache
from re4.serving.retrieval.filters import AllowedItems, Condition, apply_conditions

NUM_ITEMS = 203
COLUMNS = ("letter", "tags", "price")


@pytest.fixture(scope="module")
def columns() -> dict[str, list[object]]:
    rng = np.random.default_rng(1)
    return {
        "letter": rng.choice([*"abc", ""], NUM_ITEMS).tolist(),
        "price": rng.choice([*range(30)], NUM_ITEMS).tolist(),
        "tags": [[tag for tag in "xyz" if rng.random() < 0.4] for _ in range(NUM_ITEMS)],
    }


@pytest.fixture(scope="module")
def attributes(columns: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory) -> Attributes:
    folder: Path = tmp_path_factory.mktemp("attributes")
    return Attributes.open(folder, write_attributes(folder, columns, NUM_ITEMS), NUM_ITEMS)


condition_lists = st.lists(
    st.builds(
        Condition,
        st.sampled_from(COLUMNS),
        st.sets(st.integers(0, 2)).map(lambda codes: tuple(sorted(codes))),
        st.booleans(),
    )
    | st.builds(
        lambda is_drop, ends: Condition("price", (), is_drop, (min(ends), max(ends))),
        st.booleans(),
        st.tuples(st.integers(-1, 31), st.integers(-1, 31)),
    ),
    min_size=1,
    max_size=4,
)


@given(conditions=condition_lists, few=st.sampled_from([0, 20, 1000]))
def test_exactly_the_items_that_meet_all_conditions(
    conditions: list[Condition], few: int, attributes: Attributes, columns: dict[str, list[object]]
) -> None:
    def passes(row: int, condition: Condition) -> bool:
        own = columns[condition.attribute][row]
        if condition.range is not None:
            return (condition.range[0] <= own <= condition.range[1]) != condition.is_drop
        values = attributes[condition.attribute].values()
        wanted = {values[code] for code in condition.codes}
        texts = set(own if isinstance(own, list) else [str(own)])
        return bool(wanted & texts) != condition.is_drop

    expected = [row for row in range(NUM_ITEMS) if all(passes(row, each) for each in conditions)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("re4.serving.retrieval.filters.MAX_EXACT_ROWS", few)
        allowed = apply_conditions(attributes, conditions, NUM_ITEMS)
    assert allowed.num_rows == len(expected)
    assert allowed.rows().tolist() == expected
    rows = np.array([*range(NUM_ITEMS), 7, 7], np.int64)
    assert allowed.contains(rows).tolist() == [row in set(expected) for row in rows.tolist()]
    if allowed.few_rows_S is None:
        assert [row for row in range(NUM_ITEMS) if allowed.selector.is_member(row)] == expected
        assert not allowed.selector.is_member(NUM_ITEMS + 100)


def test_a_selector_may_outlive_its_items() -> None:
    selector = AllowedItems(mask_N=np.arange(64) % 3 == 0).selector
    index = faiss.IndexFlatIP(2)
    index.add(np.ones((64, 2), np.float32))
    found = index.search(np.ones((1, 2), np.float32), 64, params=faiss.SearchParameters(sel=selector))[1]
    assert sorted(row for row in found[0].tolist() if row >= 0) == list(range(0, 64, 3))


def test_recently_used_results_are_kept_and_the_rest_dropped(attributes: Attributes) -> None:
    def letter(code: int) -> tuple[Condition, ...]:
        return (Condition("letter", (code,), is_drop=False),)

    one = FilterCache(attributes, NUM_ITEMS).allowed_by(letter(0)).num_bytes + 1024
    filter_cache = FilterCache(attributes, NUM_ITEMS, max_bytes=2 * one + one // 2)
    first, second = filter_cache.allowed_by(letter(0)), filter_cache.allowed_by(letter(1))
    assert filter_cache.allowed_by(letter(0)) is first
    filter_cache.allowed_by(letter(2))
    assert filter_cache.allowed_by(letter(0)) is first
    assert filter_cache.allowed_by(letter(1)) is not second
