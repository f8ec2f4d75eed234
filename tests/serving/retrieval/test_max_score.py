"""The merge equals scoring the whole catalogue, with any catalogue and any exclusions."""

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from re4.serving.retrieval.indexes.kinds import KINDS
from re4.serving.retrieval.merging import MergedList, SearchResults
from re4.serving.retrieval.merging.max_score import best_items
from re4.serving.retrieval.search import Searcher


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """A catalogue, interests, exclusions and a number of candidates.

    Small whole numbers: equal scores and equal items are common, and every score is exact in float32.
    """
    num_items = draw(st.integers(1, 30))
    num_interests = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1, 3, 100]))
    items_ND = rng.integers(-spread, spread + 1, (num_items, 3)).astype(np.float32)
    interests_KD = rng.integers(-spread, spread + 1, (num_interests, 3)).astype(np.float32)
    excluded = draw(st.lists(st.integers(0, num_items - 1), max_size=num_items + 2))
    return items_ND, interests_KD, excluded, draw(st.integers(1, 40))


def ask(
    items_ND: np.ndarray, interests_KD: np.ndarray, excluded: list[int], num_candidates: int
) -> tuple[list[int], list[float], list[int]]:
    """Search an index as the pipeline does, and merge."""
    index = faiss.IndexFlatIP(items_ND.shape[1])
    index.add(items_ND)
    excluded_rows = np.unique(np.array(excluded, np.int64))
    enough = num_candidates + len(excluded_rows)
    searcher = Searcher(index, None, vectors_ND=items_ND, num_interests=len(interests_KD))
    found = best_items(SearchResults(*searcher.search(interests_KD, enough)), excluded_rows, num_candidates)
    return tuple(part.tolist() for part in found)


@settings(max_examples=400, deadline=None)
@given(questions())
def test_merge_equals_brute_force_modulo_ties(question) -> None:
    items_ND, interests_KD, excluded, num_candidates = question
    rows, scores, interest_numbers = ask(*question)

    scores_KN = interests_KD @ items_ND.T
    best_N = scores_KN.max(axis=0)
    allowed = [row for row in range(len(items_ND)) if row not in excluded]
    expected = sorted(-best_N[row] for row in allowed)[:num_candidates]

    assert [-score for score in scores] == expected  # as many as there are, and the best
    assert len(set(rows)) == len(rows), "an item twice"
    assert not set(rows) & set(excluded), "an excluded item"
    for row, score, number in zip(rows, scores, interest_numbers, strict=True):
        assert score == best_N[row] == scores_KN[number, row]
    assert sorted(zip([-score for score in scores], rows, strict=True)) == [
        (-score, row) for score, row in zip(scores, rows, strict=True)
    ], "not in the order score descending, row ascending"


def test_missing_results_are_left_out_and_are_not_the_last_item() -> None:
    """Missing results have row -1, which as an index into a table is the last row."""
    scores_KS = np.array([[2.0, -3e38, -3e38], [1.0, -3e38, -3e38]], np.float32)
    rows_KS = np.array([[4, -1, -1], [6, -1, -1]])
    found = best_items(SearchResults(scores_KS, rows_KS), np.empty(0, np.int64), 3)
    assert found.rows_M.tolist() == [4, 6]
    nothing = best_items(SearchResults(scores_KS, np.full((2, 3), -1)), np.array([0]), 3)
    assert nothing.rows_M.tolist() == []


def test_the_lowest_interest_is_named_where_several_give_the_best_score() -> None:
    scores_KS = np.array([[1.0, 0.0], [5.0, 1.0], [5.0, 1.0]], np.float32)
    rows_KS = np.array([[8, 9], [9, 8], [8, 9]])
    found = best_items(SearchResults(scores_KS, rows_KS), np.empty(0, np.int64), 5)
    assert found.rows_M.tolist() == [8, 9]
    assert found.scores_M.tolist() == [5.0, 5.0]
    assert found.interest_numbers_M.tolist() == [2, 1]


def test_items_with_equal_scores_are_all_kept() -> None:
    """Distinct items with one score are all kept: merging goes by item, never by score."""
    items_ND = np.ones((5, 3), np.float32)
    rows, scores, _ = ask(items_ND, np.ones((2, 3), np.float32), [1], 10)
    assert rows == [0, 2, 3, 4]
    assert scores == [3.0] * 4


def test_everything_excluded_leaves_nothing() -> None:
    items_ND = np.eye(3, dtype=np.float32)
    assert ask(items_ND, np.ones((1, 3), np.float32), [0, 1, 2], 2) == ([], [], [])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 60),
    st.lists(st.integers(0, 199), max_size=30),
    st.sampled_from([{}, {"shared_nprobe": 5, "reach_drop": 0.8}]),
)
def test_the_best_of_an_approximate_index_are_those_of_a_merge_of_its_lists(
    seed: int, num_interests: int, num_candidates: int, excluded: list[int], budget: dict[str, int]
) -> None:
    """The shorter way by maximum score, from the pool at once: ties and missing results alike."""
    rng = np.random.default_rng(seed)
    items_ND = rng.integers(-2, 3, (200, 4)).astype(np.float32)  # many equal scores
    index = faiss.index_factory(4, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(items_ND)
    index.add(items_ND)
    plan = KINDS["ivf"].search_parameters({"nprobe": 2, "k_factor": 1.5, "pool_factor": 2.0} | budget)
    searcher = Searcher(index, plan, vectors_ND=items_ND, num_interests=num_interests)
    interests_QD = rng.integers(-2, 3, (3 * num_interests, 4)).astype(np.float32)
    excluded_rows = np.unique(np.array(excluded, np.int64))
    depth = num_candidates + len(excluded_rows)
    scores_QS, rows_QS = searcher.search(interests_QD, depth, needs_each_list=False)
    best = searcher.search_best(interests_QD, depth)
    for request in range(3):
        own = slice(request * num_interests, (request + 1) * num_interests)
        best_of_request = MergedList(*(part[request] for part in best))
        found = best_items(SearchResults(best=best_of_request), excluded_rows, num_candidates)
        lists = SearchResults(scores_QS[own], rows_QS[own])
        wanted = best_items(lists, excluded_rows, num_candidates)
        for have, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(have, want)
