"""Category diversity against its definition, by the simplest code that follows it; factor 0 is max score."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from re4.bundle.attributes.reader import Attribute, Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.serving.retrieval.merging import MAX_SCORE, SearchResults
from re4.serving.retrieval.merging.category_diversity import POOL_FACTOR, category_diversity

NUM_ITEMS = 90
ONE_ITEM = np.ones((3, 1), np.float32)


@pytest.fixture(scope="module")
def columns() -> dict[str, list[object]]:
    rng = np.random.default_rng(4)
    return {
        "brand": rng.choice([*"abcdefgh", ""], NUM_ITEMS, p=[0.5, *([0.0625] * 8)]).tolist(),
        "tags": [[tag for tag in "uvwxyz" if rng.random() < 0.2] for _ in range(NUM_ITEMS)],
        "one": ["same"] * NUM_ITEMS,
    }


@pytest.fixture(scope="module")
def attributes(columns: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory) -> Attributes:
    folder: Path = tmp_path_factory.mktemp("attributes")
    return Attributes.open(folder, write_attributes(folder, columns, NUM_ITEMS), NUM_ITEMS)


def is_alike(column: list[object], one: int, other: int) -> bool:
    own, others = column[one], column[other]
    if isinstance(own, list):
        return bool(set(own) & set(others)) or not (own or others)
    return own == others


def greedy(
    scores: dict[int, float], column: list[object], factor: float, num_candidates: int
) -> list[tuple[int, float]]:
    """The definition: rows with their gains, in the order of choosing."""
    left = sorted(scores, key=lambda row: (-scores[row], row))[: POOL_FACTOR * num_candidates]
    chosen: list[tuple[int, float]] = []
    while left and len(chosen) < num_candidates:
        gains = [
            scores[row] + factor * sum(not is_alike(column, row, other) for other, _ in chosen)
            for row in left
        ]
        best = int(np.argmax(gains))
        chosen.append((left.pop(best), gains[best]))
    return chosen


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Three interests' lists, the rows to leave out, how many candidates. Scores are eighths: sums exact."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores_KN = rng.integers(-40, 40, (3, NUM_ITEMS)).astype(np.float32) / 8
    num_candidates = draw(st.sampled_from([1, 5, 17, 90]))
    excluded_rows = np.sort(rng.permutation(NUM_ITEMS)[: draw(st.sampled_from([0, 3, 60]))])
    order_KN = np.argsort(-scores_KN, axis=1, kind="stable")[:, : POOL_FACTOR * num_candidates + 60]
    return np.take_along_axis(scores_KN, order_KN, 1), order_KN, excluded_rows, num_candidates


@given(
    asked=questions(),
    name=st.sampled_from(["brand", "tags", "one"]),
    factor=st.sampled_from([0.125, 0.5, 2.0, 64.0]),
)
def test_it_is_the_greedy_choice(
    attributes: Attributes,
    columns: dict[str, list[object]],
    asked: tuple[np.ndarray, np.ndarray, np.ndarray, int],
    name: str,
    factor: float,
) -> None:
    scores_KS, rows_KS, excluded_rows, num_candidates = asked
    scores = {
        row: max(scores_KS[rows_KS == row].tolist())
        for row in set(rows_KS.ravel().tolist()) - set(excluded_rows.tolist())
    }
    policy = category_diversity(attributes[name], factor)
    found = policy.merge(SearchResults(scores_KS, rows_KS), excluded_rows, num_candidates, ONE_ITEM)
    expected = greedy(scores, columns[name], factor, num_candidates)
    assert found.rows_M.tolist() == [row for row, _ in expected]
    assert found.scores_M.tolist() == [scores[row] for row, _ in expected]
    for row, score, k in zip(*(part.tolist() for part in found), strict=True):
        assert scores_KS[k][rows_KS[k] == row].tolist() == [score]


def test_without_a_factor_it_is_max_score(attributes: Attributes) -> None:
    assert category_diversity(attributes["brand"], 0.0) is MAX_SCORE


def test_a_large_factor_shows_every_category_before_any_twice(attributes: Attributes) -> None:
    category: Attribute = attributes["brand"]
    rng = np.random.default_rng(0)
    rows_KS = np.argsort(rng.standard_normal((3, NUM_ITEMS)), axis=1)
    scores_KS = -np.sort(-rng.standard_normal((3, NUM_ITEMS)).astype(np.float32), axis=1)
    found = category_diversity(category, 1e6).merge(
        SearchResults(scores_KS, rows_KS), np.empty(0, np.int64), 30, ONE_ITEM
    )
    codes, _ = category.codes_of(found.rows_M)
    assert len(set(codes[: category.num_values + 1].tolist())) == category.num_values + 1


def test_nothing_to_choose_from_is_nothing(attributes: Attributes) -> None:
    nothing = np.full((3, 4), -1)
    policy = category_diversity(attributes["tags"], 1.0)
    results = SearchResults(np.zeros((3, 4), np.float32), nothing)
    found = policy.merge(results, np.empty(0, np.int64), 5, ONE_ITEM)
    assert len(found.rows_M) == 0
