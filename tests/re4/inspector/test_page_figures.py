"""The figures of the page: projection, cosines and ages in words, moves between two lists."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from re4.inspector.answer import Answer, Candidate, ShownItem
from re4.inspector.comparison import compare
from re4.inspector.projection import project
from re4.inspector.words import age_in_words, cosine_in_words, cosines_of, describe_interests, list_of


def test_equal_directions_have_equal_points_and_the_plane_is_kept() -> None:
    angles = np.linspace(0, 5, 7)
    plane = np.stack([np.cos(angles), np.sin(angles), np.zeros(7)], axis=1)
    shown = project(np.concatenate([plane, 3 * plane[:1]]).astype(np.float32))
    assert shown.shown_share == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(shown.points_P2[0], shown.points_P2[-1], atol=1e-6)
    distances = np.linalg.norm(shown.points_P2[:7, None] - shown.points_P2[None, :7], axis=-1)
    true = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.testing.assert_allclose(distances / distances.max(), true / true.max(), atol=1e-6)


@pytest.mark.parametrize("num_points", [1, 2])
def test_few_points_are_shown(num_points: int) -> None:
    shown = project(np.ones((num_points, 1), np.float32))
    assert shown.points_P2.shape == (num_points, 2)
    assert not shown.points_P2.any()


def test_cosines_have_words() -> None:
    assert [cosine_in_words(each) for each in (1.0, 0.85, 0.6, 0.3, 0.0, -0.9)] == [
        *("nearly one", "very much alike", "alike", "loosely related", "unrelated", "opposed")
    ]
    near = cosines_of(np.array([[1, 0], [2, 0.1], [0, 1]], np.float32))
    assert describe_interests(near) == [
        "Interests 0 and 1 are nearly one (cosine 1.00): they find the same items for this user.",
        "The closest of the others are 1 and 2: unrelated (cosine 0.05).",
    ]
    assert describe_interests(cosines_of(np.eye(2, dtype=np.float32))) == [
        "The closest two interests are 0 and 1: unrelated (cosine 0.00)."
    ]
    (all_near,) = describe_interests(np.array([[1, 0.96, 0.9], [0.96, 1, 0.97], [0.9, 0.97, 1]], np.float32))
    assert all_near.startswith("All 3 interests are nearly one (cosines 0.90 to 0.97)")
    assert describe_interests(np.ones((1, 1), np.float32)) == ["The model has one interest."]


def test_ages_and_lists_have_words() -> None:
    now = datetime(2026, 1, 3, 12, tzinfo=UTC)
    made = ("2026-01-01T11:00:00Z", "2026-01-03T10:59:00Z", "2026-01-03T11:59:30Z", "then")
    assert [age_in_words(each, now) for each in made] == ["2 days", "1 hour", "less than a minute", "unknown"]
    assert [list_of(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]


def answer(ids: str, **facts: Any) -> Answer:
    candidates = [
        Candidate(
            item=ShownItem(item_id=id_, title=id_.upper(), values=""),
            place=place,
            score=1.0,
            interest=0,
            is_new=False,
            because="",
        )
        for place, id_ in enumerate(ids, start=1)
    ]
    given = {
        "version": "v",
        "columns": [],
        "cosines": [],
        "sentences": [],
        "points": [],
        "map_box": "",
    } | facts
    return Answer(
        candidates=candidates,
        shown_share=1.0,
        stages=[],
        round_trip_ms=0.0,
        num_unknown=0,
        is_popularity_fallback=False,
        is_history_missing=False,
        **given,
    )


def test_moves_between_two_lists_are_named() -> None:
    found = compare(answer("abcd"), answer("adbe", version="w"))
    assert [row.one_move for row in found.rows] == ["", "", "only here", ""]
    assert [row.other_move for row in found.rows] == ["", "up 2 from 4", "down 1 from 2", "only here"]
    assert found.sentences[:2] == [
        "3 of 4 candidates are in both lists, 1 of them at the same place.",
        "The largest move is that of D: from place 4 to 2.",
    ]
    assert "The numbers of interests belong to each version" in found.sentences[2]
    assert compare(answer("ab"), answer("ab")).sentences == [
        "Both lists are equal: 2 candidates at the same places."
    ]
    assert [row.other is None for row in compare(answer("ab"), answer("a")).rows] == [False, True]


def test_later_items_are_counted_in_both_lists() -> None:
    one, other = answer("ab", num_later=3, num_found=1), answer("ba", num_later=3, num_found=2)
    sentences = compare(one, other).sentences
    assert sentences[-1] == (
        "Of the 3 items that the user chose later, 1 are in the first list and 2 in the second."
    )
