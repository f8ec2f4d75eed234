"""One budget of lists for all interests: the best pairs are read, and with all of them nothing is missed."""

from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_search import best_lists, plain_search

from re4.common.shared_list_search import NO_DROP_TOO_LARGE, SharedBudget, SharedListSearch
from re4.exporting.index.build import build_index

DIM, NUM_ITEMS, NUM_INTERESTS = 16, 3000, 4
FACTORIES = ["IVF32,Flat", "IVF300,Flat", "IVF32,SQ8", "IVF300,PQ16x4fsr", "IVF32,PQ16x4fs", "IVF32,RaBitQ"]


@pytest.fixture(scope="module")
def indexes() -> dict[str, faiss.IndexIVF]:
    vectors = np.random.default_rng(0).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    return {factory: build_index(factory, vectors).index for factory in FACTORIES}


@pytest.fixture(scope="module")
def interests() -> np.ndarray:
    rng = np.random.default_rng(1)
    made = rng.standard_normal((12, NUM_INTERESTS, DIM)).astype(np.float32)
    return made * rng.uniform(0.3, 2, (12, NUM_INTERESTS, 1)).astype(np.float32)


def search_of(index: faiss.IndexIVF) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return partial(SharedListSearch(index, is_native=False).search, pool_size=1)


def everything(num_lists: int) -> SharedBudget:
    """A budget that ends by its number of lists alone."""
    return SharedBudget(num_lists, NO_DROP_TOO_LARGE)


def results_of(found: tuple[np.ndarray, np.ndarray], request: int) -> dict[int, float]:
    """The best approximate score of each row."""
    best: dict[int, float] = {}
    for row, score in zip(
        found[1][request].ravel().tolist(), found[0][request].ravel().tolist(), strict=True
    ):
        if row >= 0:
            best[row] = max(score, best.get(row, -np.inf))
    return best


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40), st.integers(1, 20))
def test_with_all_lists_the_best_of_all_interests_are_exact(
    seed: int, num_interests: int, num_results: int, num_lists: int
) -> None:
    """Whole numbers: equal scores are common, and every score is exact in float32."""
    rng = np.random.default_rng(seed)
    items_ND = rng.integers(-3, 4, (60, 4)).astype(np.float32)
    index = faiss.index_factory(4, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(items_ND)
    index.add(items_ND)
    interests_BKD = rng.integers(-3, 4, (3, num_interests, 4)).astype(np.float32)
    found = search_of(index)(interests_BKD, num_results, everything(num_interests * num_lists))
    for request, interests_KD in enumerate(interests_BKD):
        best = results_of(found, request)
        true = (items_ND @ interests_KD.T).max(axis=1)
        assert (
            sorted(best.values(), reverse=True)[:num_results]
            == sorted(true.tolist(), reverse=True)[:num_results]
        )


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize(
    ("num_lists", "reach_drop"), [(1, 9), (3, 9), (20, 0.3), (50, 0.5), (20, 1e-6), (200, 0.8)]
)
def test_the_pairs_of_the_largest_reach_are_read(
    factory: str,
    num_lists: int,
    reach_drop: float,
    indexes: dict[str, faiss.IndexIVF],
    interests: np.ndarray,
) -> None:
    index = indexes[factory]
    budget = SharedBudget(num_lists, reach_drop)
    settings = {"shared_nprobe": num_lists, "reach_drop": reach_drop}
    together = search_of(index)(interests, 7, budget)
    num_searched = 0
    for request, interests_KD in enumerate(interests):
        expected: dict[int, float] = {}
        for row, score in plain_search(index, interests_KD, 7, settings, None):
            expected[row] = max(score, expected.get(row, -np.inf))
        found = results_of(together, request)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
        alone = search_of(index)(interests_KD[None], 7, budget)
        assert results_of(alone, 0) == found
        num_searched = max(
            num_searched, sum(bool(lists) for _, lists in best_lists(index, interests_KD, *budget))
        )
    assert together[1].shape == (len(interests), num_searched, 7)


def test_an_interest_without_a_list_is_not_searched(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    weak = interests.copy()
    weak[:, 1:] *= 0.01
    _, rows_BAS = search_of(indexes["IVF32,Flat"])(weak, 5, everything(4))
    assert rows_BAS.shape == (len(weak), 1, 5)


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF300,PQ16x4fsr"])
def test_a_repeated_interest_takes_no_share(
    factory: str, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    """A user with one item has one interest, K times."""
    repeated = np.repeat(interests[:, :1], NUM_INTERESTS, axis=1)
    search = search_of(indexes[factory])
    budget = everything(12)
    results = search(interests[:, :1], 9, budget), search(repeated, 9, budget)
    for once, more in zip(*results, strict=True):
        np.testing.assert_array_equal(once, more)


def test_lists_that_promise_little_beside_the_best_one_are_not_read(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    index = indexes["IVF300,Flat"]
    one = search_of(index)(interests, 5, SharedBudget(1, 9))
    for once, more in zip(one, search_of(index)(interests, 5, SharedBudget(40, 1e-6)), strict=True):
        np.testing.assert_array_equal(once, more)


def test_where_every_reach_is_negative_a_larger_drop_still_reads_more() -> None:
    rng = np.random.default_rng(0)
    items = -1 - rng.random((500, 4)).astype(np.float32)
    index = build_index("IVF20,Flat", items).index
    interests = np.ones((3, 2, 4), np.float32)
    interests[:, 1] += 0.1
    found = [search_of(index)(interests, 300, SharedBudget(40, f))[1] for f in (1e-6, 0.3, 1)]
    counts = [int((rows >= 0).sum()) for rows in found]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_budgets_read_half_of_their_lists_on_average(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    index = indexes["IVF300,Flat"]
    for budget in SharedListSearch(index).budgets(interests, [4, 30, 200]):
        read = [sum(len(lists) for _, lists in best_lists(index, each, *budget)) for each in interests]
        assert np.mean(read) == pytest.approx(budget.num_lists / 2, rel=0.1)
        assert max(read) <= budget.num_lists


def test_a_selector_applies(indexes: dict[str, faiss.IndexIVF], interests: np.ndarray) -> None:
    allowed = np.arange(NUM_ITEMS) % 3 == 0
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    for index in indexes.values():
        _, rows = search_of(index)(interests, 20, everything(60), selector=selector)
        assert allowed[rows[rows >= 0]].all()
        assert (rows >= 0).any()


@pytest.mark.parametrize("is_native", [False, True])
def test_a_balance_gives_weak_interests_a_share_of_the_lists_and_of_the_pool(
    is_native: bool, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    weak = interests.copy()
    weak[:, 1:] *= 0.01
    search = SharedListSearch(indexes["IVF300,PQ16x4fsr"], is_native=is_native).search
    items_ND = np.random.default_rng(0).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    own_best = (weak @ items_ND.T).argmax(axis=2)

    def num_found(balance: float) -> int:
        _, rows_BAS = search(weak, 10, everything(40), pool_size=40, balance=balance)
        found = [set(rows.ravel().tolist()) for rows in rows_BAS]
        return sum(row in rows for rows, best_K in zip(found, own_best, strict=True) for row in best_K[1:])

    assert num_found(1.0) > 3 * num_found(0.0)


def test_a_balance_ignores_a_repeated_interest(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    repeated = np.repeat(interests[:, :1], NUM_INTERESTS, axis=1)
    search = search_of(indexes["IVF32,Flat"])
    for with_balance, without in zip(
        search(repeated, 5, everything(4), balance=0.5), search(repeated, 5, everything(4)), strict=True
    ):
        np.testing.assert_array_equal(with_balance, without)
