"""Exact search against the plainest exact search there is; recall against its definition, ties included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.bundle.scoring import exact_search as exact
from re4.bundle.scoring.exact_search import exact_search, exact_thresholds, merged_recall, recall_of


def plainly(interests_QKD, vectors_ND, num_candidates):
    """One query and one item at a time, sorted by Python."""
    answers = []
    for interests_KD in interests_QKD.astype(np.float64):
        scores = [
            np.float32((interests_KD @ vector).max()) for vector in vectors_ND.astype(np.float64)[:, :, None]
        ]
        answers.append(sorted((-score, row) for row, score in enumerate(scores))[:num_candidates])
    return answers


@given(
    seed=st.integers(0, 2**32 - 1),
    num_queries=st.integers(1, 4),
    num_interests=st.integers(1, 3),
    num_items=st.integers(1, 40),
    chunk=st.integers(1, 50),
    num_first=st.integers(1, 50),
    few_values=st.booleans(),
    among_some=st.booleans(),
    data=st.data(),
)
def test_equals_the_plainest_way(
    seed, num_queries, num_interests, num_items, chunk, num_first, few_values, among_some, data
):
    rng = np.random.default_rng(seed)
    num_results = data.draw(st.integers(1, num_items + 1))
    shapes = ((num_queries, num_interests, 3), (num_items, 3))
    if few_values:  # many ties
        interests, vectors = (rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes)
    else:
        interests, vectors = (rng.standard_normal(shape, np.float32) for shape in shapes)
    some = np.flatnonzero(rng.random(num_items) < 0.6)
    choice = {"among_rows": some} if among_some else {"excluded_rows": some}
    eligible = set(some.tolist()) if among_some else set(range(num_items)) - set(some.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_CHUNK_ITEMS", chunk)
        patch.setattr(exact, "_NUM_FIRST", num_first)
        scores, rows = exact_search(interests, vectors, num_results, sum_in_float64=True, **choice)
    assert rows.shape == scores.shape == (num_queries, min(num_results, len(eligible)))
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    for got_rows, got_scores, all_wanted in zip(
        rows, scores, plainly(interests, vectors, num_items), strict=True
    ):
        wanted = [(score, row) for score, row in all_wanted if row in eligible][:num_results]
        assert got_rows.tolist() == [row for _, row in wanted]
        np.testing.assert_allclose(got_scores, [-score for score, _ in wanted], rtol=1e-6)


def test_equal_items_tie_in_the_order_of_their_rows():
    vectors = np.repeat(np.random.default_rng(0).standard_normal((1, 64), np.float32), 1000, axis=0)
    interests = np.random.default_rng(1).standard_normal((3, 4, 64), np.float32)
    _, rows = exact_search(interests, vectors, 10, sum_in_float64=True)
    assert rows.tolist() == [list(range(10))] * 3


def test_ties_at_the_cut_are_in_the_order_of_the_catalogue():
    """Whole numbers: float32 sums are exact, so that equal scores are equal in every bit."""
    vectors = np.random.default_rng(0).integers(-1, 2, (500, 4)).astype(np.float32)
    interests = np.random.default_rng(1).integers(-1, 2, (5, 4)).astype(np.float32)
    _, rows = exact_search(interests[:, None], vectors, 30)
    for found, scores in zip(rows, interests @ vectors.T, strict=True):
        assert found.tolist() == sorted(range(500), key=lambda row: (-scores[row], row))[:30]


def test_thresholds_are_those_of_brute_force():
    rng = np.random.default_rng(2)
    interests, vectors = rng.standard_normal((7, 3, 8), np.float32), rng.standard_normal((300, 8), np.float32)
    scores_QN = np.einsum("qkd,nd->qkn", interests, vectors).max(axis=1)
    thresholds = exact_thresholds(interests, vectors, 10)
    np.testing.assert_allclose(thresholds, np.sort(scores_QN, axis=1)[:, -10], rtol=1e-5)
    best = np.argsort(-scores_QN, axis=1)[:, :10]
    assert merged_recall(interests, vectors, best, thresholds) == 1.0


def test_ties_harm_nobody_and_missing_results_find_nothing():
    vectors = np.ones((20, 4), np.float32)
    interests = np.ones((1, 2, 4), np.float32)
    thresholds = exact_thresholds(interests, vectors, 3)
    assert merged_recall(interests, vectors, np.array([[17, 18, 19]]), thresholds) == 1.0
    assert merged_recall(interests, vectors, np.array([[17, -1, -1]]), thresholds) == pytest.approx(1 / 3)


def test_recall_is_the_share_of_the_exact_candidates_ties_and_exclusions_counted():
    vectors = np.array([[5.0], [4.0], [3.0], [3.0], [1.0]], np.float32)
    interests = np.array([[1.0], [0.5]], np.float32)

    def recall(*rows, excluded=(), num_candidates=None):
        return recall_of(
            interests,
            vectors,
            np.array(rows),
            num_candidates=num_candidates or len(rows),
            excluded_rows=np.array(excluded, np.int64),
        )

    assert recall(0, 1, 2) == recall(0, 1, 3) == 1  # 2 and 3 tie
    assert recall(0, 1, 4) == 2 / 3
    assert recall(4, 1) == 0.5
    assert recall(1, 2, excluded=[0]) == 1
    assert recall(1, 2) == 0.5
    assert recall(0, num_candidates=2) == 0.5
    assert recall(0, 4, excluded=[0]) == 0  # an excluded item is no candidate, however good
    assert recall(3, 4, excluded=[0, 1, 2], num_candidates=9) == 1  # all that there are
    assert recall(0, 1, 2, 3, 4, excluded=[0, 1, 2, 3, 4]) == 1


def test_recall_agrees_with_a_full_sort_over_many_chunks():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((70_000, 4)).astype(np.float32)
    interests = rng.standard_normal((3, 4)).astype(np.float32)
    best = np.argsort(-(vectors @ interests.T).max(axis=1))

    def recall(rows, excluded):
        return recall_of(interests, vectors, rows, num_candidates=50, excluded_rows=excluded)

    assert recall(best[:50], best[:0]) == 1
    assert recall(best[10:60], best[:0]) == 0.8
    assert recall(best[10:60], best[:10]) == 1
