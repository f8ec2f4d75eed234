"""One budget of lists for all interests: the best pairs are read, and with all of them nothing is missed."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_search import best_lists, plain_search

from re4.common.shared_list_search import SharedListSearch
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
    found = SharedListSearch(index).search(interests_BKD, num_results, num_interests * num_lists)
    for request, interests_KD in enumerate(interests_BKD):
        best = results_of(found, request)
        true = (items_ND @ interests_KD.T).max(axis=1)
        assert (
            sorted(best.values(), reverse=True)[:num_results]
            == sorted(true.tolist(), reverse=True)[:num_results]
        )


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("num_lists", [1, 3, 20, 50])
def test_the_pairs_of_the_largest_reach_are_read(
    factory: str, num_lists: int, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    index = indexes[factory]
    together = SharedListSearch(index).search(interests, 7, num_lists)
    num_searched = 0
    for request, interests_KD in enumerate(interests):
        expected: dict[int, float] = {}
        for row, score in plain_search(index, interests_KD, 7, {"shared_nprobe": num_lists}, None):
            expected[row] = max(score, expected.get(row, -np.inf))
        found = results_of(together, request)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
        alone = SharedListSearch(index).search(interests_KD[None], 7, num_lists)
        assert results_of(alone, 0) == found
        num_searched = max(
            num_searched, sum(bool(lists) for _, lists in best_lists(index, interests_KD, num_lists))
        )
    assert together[1].shape == (len(interests), num_searched, 7)


def test_an_interest_without_a_list_is_not_searched(
    indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    weak = interests.copy()
    weak[:, 1:] *= 0.01
    _, rows_BAS = SharedListSearch(indexes["IVF32,Flat"]).search(weak, 5, 4)
    assert rows_BAS.shape == (len(weak), 1, 5)


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF300,PQ16x4fsr"])
def test_a_repeated_interest_takes_no_share(
    factory: str, indexes: dict[str, faiss.IndexIVF], interests: np.ndarray
) -> None:
    """A user with one item has one interest, K times."""
    repeated = np.repeat(interests[:, :1], NUM_INTERESTS, axis=1)
    search = SharedListSearch(indexes[factory])
    for once, more in zip(
        search.search(interests[:, :1], 9, 12), search.search(repeated, 9, 12), strict=True
    ):
        np.testing.assert_array_equal(once, more)


def test_a_selector_applies(indexes: dict[str, faiss.IndexIVF], interests: np.ndarray) -> None:
    allowed = np.arange(NUM_ITEMS) % 3 == 0
    selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    for index in indexes.values():
        _, rows = SharedListSearch(index).search(interests, 20, 60, selector=selector)
        assert allowed[rows[rows >= 0]].all()
        assert (rows >= 0).any()
