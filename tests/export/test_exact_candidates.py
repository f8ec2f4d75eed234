"""Brute force, against the plainest brute force there is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.exporting.index import exact_candidates as exact
from re4.exporting.index.exact_candidates import exact_candidates


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
    block=st.integers(1, 50),
    few_values=st.booleans(),
    data=st.data(),
)
def test_equals_the_plainest_way(seed, num_queries, num_interests, num_items, block, few_values, data):
    rng = np.random.default_rng(seed)
    num_candidates = data.draw(st.integers(1, num_items))
    shapes = ((num_queries, num_interests, 3), (num_items, 3))
    if few_values:  # many ties
        interests, vectors = (rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes)
    else:
        interests, vectors = (rng.standard_normal(shape, np.float32) for shape in shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_ITEMS_AT_ONCE", block)
        rows, scores = exact_candidates(interests, vectors, num_candidates)
    assert rows.shape == scores.shape == (num_queries, num_candidates)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    for got_rows, got_scores, wanted in zip(
        rows, scores, plainly(interests, vectors, num_candidates), strict=True
    ):
        assert got_rows.tolist() == [row for _, row in wanted]
        np.testing.assert_allclose(got_scores, [-score for score, _ in wanted], rtol=1e-6)


def test_equal_items_tie_in_the_order_of_their_rows():
    vectors = np.repeat(np.random.default_rng(0).standard_normal((1, 64), np.float32), 1000, axis=0)
    rows, _ = exact_candidates(np.random.default_rng(1).standard_normal((3, 4, 64), np.float32), vectors, 10)
    assert rows.tolist() == [list(range(10))] * 3
