"""A pool holds the best found items, each once, with its exact score for every interest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from re4.bundle.scoring.rescoring import best_by_interest, best_candidates, best_rescored, rescore


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Draw search results of a few requests among a few items, with ties, duplicates and gaps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_requests, num_interests, num_results, num_items = (draw(st.integers(1, n)) for n in (3, 4, 9, 30))
    shape = (num_requests, num_interests, num_results)
    rows = rng.integers(-1, num_items, shape)
    rough = rng.integers(-3, 4, shape).astype(np.float32) * draw(st.sampled_from([1, 0.37, 1e30]))
    rough[rows < 0] = -np.finfo(np.float32).max
    interests = rng.integers(-2, 3, (num_requests, num_interests, 5)).astype(np.float32)
    vectors = rng.integers(-2, 3, (num_items, 5)).astype(np.float32)
    return rough, rows, interests, vectors, draw(st.integers(1, 40))


def plain_pool(rough_KS: np.ndarray, rows_KS: np.ndarray, size: int) -> tuple[set[int], set[int]]:
    """Return the rows that must be in the pool, and those that tie for its last positions."""
    best: dict[int, float] = {}
    for row, score in zip(rows_KS.ravel().tolist(), rough_KS.ravel().tolist(), strict=True):
        if row >= 0:
            best[row] = max(score, best.get(row, -np.inf))
    if len(best) <= size:
        return set(best), set()
    last = sorted(best.values())[-size]
    return {row for row in best if best[row] > last}, {row for row in best if best[row] == last}


@settings(max_examples=200, deadline=None)
@given(searches())
def test_a_pool_is_the_most_promising_of_the_union(search: tuple) -> None:
    rough, rows, interests, vectors, size = search
    pools = rescore(rough, rows, interests, vectors, size)
    for number in range(len(rows)):
        held = [row for row in pools.rows_BP[number].tolist() if row >= 0]
        sure, tied = plain_pool(rough[number], rows[number], size)
        assert held == sorted(set(held))
        assert sure <= set(held) <= sure | tied
        assert len(held) == min(size, len(sure | tied))
        is_held = pools.rows_BP[number] >= 0
        assert (pools.scores_BKP[number][:, is_held] == interests[number] @ vectors[held].T).all()
        assert (pools.scores_BKP[number][:, ~is_held] == -np.inf).all()


@settings(max_examples=200, deadline=None)
@given(searches(), st.integers(1, 12))
def test_the_best_of_a_pool_and_its_lists_are_those_of_a_plain_sort(search: tuple, num_wanted: int) -> None:
    rough, rows, interests, vectors, _ = search
    pools = rescore(rough, rows, interests, vectors, rows[0].size)
    best_rows, best_scores, numbers = best_candidates(pools, num_wanted)
    scores_BKS, rows_BKS = best_by_interest(pools, num_wanted)
    for number in range(len(rows)):
        held = sorted({row for row in rows[number].ravel().tolist() if row >= 0})
        true = vectors @ interests[number].T
        expected = sorted(held, key=lambda row: (-true[row].max(), row))[:num_wanted]
        found = best_rows[number][best_rows[number] >= 0]
        assert found.tolist() == expected
        assert best_scores[number][: len(found)].tolist() == true[expected].max(axis=1).tolist()
        assert numbers[number][: len(found)].tolist() == true[expected].argmax(axis=1).tolist()
        for interest in range(interests.shape[1]):
            expected = sorted(held, key=lambda row, k=interest: (-true[row, k], row))[:num_wanted]
            listed = rows_BKS[number, interest]
            assert listed[listed >= 0].tolist() == expected
            assert scores_BKS[number, interest][: len(expected)].tolist() == true[expected, interest].tolist()


@settings(max_examples=300, deadline=None)
@given(searches(), st.integers(1, 12), st.integers(0, 30))
def test_compiled_code_finds_the_same(search: tuple, num_wanted: int, num_of_version: int) -> None:
    rough, rows, interests, vectors, size = search
    expected = best_candidates(rescore(rough, rows, interests, vectors, size), num_wanted)
    found = best_rescored(rough, rows, interests, vectors, size, num_wanted)
    assert all(map(np.array_equal, found, expected))
    # The last items of the catalogue as further ones, behind a gap in the rows.
    first = min(num_of_version, len(vectors))
    apart = np.where(rows >= first, rows + 100 - first, rows)
    more = (100, vectors[first:])
    if first:
        far = best_rescored(rough, apart, interests, vectors[:first], size, num_wanted, more)
        place_of = np.r_[np.arange(first), np.zeros(100 - first, int), np.arange(first, len(vectors)), -1]
        assert all(map(np.array_equal, (place_of[far[0]], *far[1:]), expected))


def test_rows_beyond_the_vectors_are_not_read() -> None:
    rows = np.array([[[0, 5, 2**31 - 1]]])
    rough = np.ones(rows.shape, np.float32)
    found = best_rescored(rough, rows, np.ones((1, 1, 3), np.float32), np.ones((5, 3), np.float32), 3, 3)
    assert found[0].tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_interests_that_agree_do_not_make_a_pool_smaller(size: int) -> None:
    rows = np.broadcast_to(np.arange(8), (1, 4, 8)).copy()
    rough = np.broadcast_to(np.arange(8, 0, -1, np.float32), (1, 4, 8)).copy()
    ones = np.ones((1, 4, 2), np.float32)
    pools = rescore(rough, rows, ones, np.ones((8, 2), np.float32), size)
    assert (pools.rows_BP >= 0).sum() == min(size, 8)
