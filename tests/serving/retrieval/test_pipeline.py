"""Batches of mixed queries are answered exactly, and one query changes nothing for another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundles import MAX_HISTORY, NUM_INTERESTS, SmallVersion, load

from re4.bundle.hidden_ids import HiddenIds
from re4.common.errors import BundleMismatchError
from re4.serving.retrieval.encoder import bucket_sizes
from re4.serving.retrieval.merging import POLICIES, MergePolicy
from re4.serving.retrieval.merging.max_score import best_items
from re4.serving.retrieval.pipeline import Pipeline, Query, QueryResult
from re4.serving.versions.snapshot import Snapshot


def query(rows: list[int], num_candidates: int, excluded: list[int] = ()) -> Query:
    """A query for a history of rows, oldest first."""
    return Query(
        history_rows_L=np.array(rows[::-1], np.int64),
        num_candidates=num_candidates,
        excluded_rows=np.unique(np.array(excluded, np.int64)),
    )


def assert_right(answer: QueryResult, version: SmallVersion, rows: list[int], asked: Query) -> None:
    interests_KD, attention_KL = version.encode(rows)
    np.testing.assert_allclose(answer.interests_KD, interests_KD, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answer.attention_KL[:, ::-1], attention_KL, rtol=1e-4, atol=1e-5)
    expected = version.best(rows, asked.num_candidates, asked.excluded_rows.tolist())
    assert answer.merged.rows_M.tolist() == expected
    np.testing.assert_allclose(answer.merged.scores_M, version.scores(rows)[expected], rtol=1e-4, atol=1e-4)
    scores_KM = interests_KD @ version.vectors_ND[expected].T
    named_M = scores_KM[answer.merged.interest_numbers_M, np.arange(len(expected))]
    np.testing.assert_allclose(named_M, version.scores(rows)[expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_mixed_batches_are_exact(batch_size: int, snapshot: Snapshot, small_version: SmallVersion) -> None:
    rng = np.random.default_rng(batch_size)
    for _ in range(10):
        histories = [
            rng.integers(60, size=rng.integers(1, MAX_HISTORY + 1)).tolist() for _ in range(batch_size)
        ]
        asked = [
            query(
                history,
                int(rng.choice([1, 7, 60, 200])),
                rng.integers(60, size=rng.choice([0, 3, 40])).tolist(),
            )
            for history in histories
        ]
        answers = snapshot.pipeline.run(asked)
        for answer, history, question in zip(answers, histories, asked, strict=True):
            assert_right(answer, small_version, history, question)
            assert answer.times.batch_size == batch_size


def test_a_query_for_interests_alone_shares_a_batch_and_gets_no_candidates(
    snapshot: Snapshot, small_version: SmallVersion
) -> None:
    asked = [query([3, 4], 0), query([5], 4), query([6], 0)]
    answers = snapshot.pipeline.run(asked)
    for answer, history, question in zip(answers, [[3, 4], [5], [6]], asked, strict=True):
        assert_right(answer, small_version, history, question)
    assert [len(answer.merged.rows_M) for answer in answers] == [0, 4, 0]
    assert len(snapshot.pipeline.run([query([1], 0)])[0].merged.rows_M) == 0


def test_interests_that_are_not_finite_are_an_error_for_that_query_alone(
    snapshot: Snapshot, small_version: SmallVersion
) -> None:
    encoder = snapshot.pipeline._encoder

    class Overflowing:
        def encode(self, history_BLD: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            interests_BKD, attention_BKL = encoder.encode(history_BLD, lengths_B)
            interests_BKD = interests_BKD.copy()
            interests_BKD[1, NUM_INTERESTS - 1, 0] = np.nan
            interests_BKD[3, 0, 2] = np.inf
            return interests_BKD, attention_BKL

    class Strict:
        """FAISS's answer to a query that is not finite is undefined: it must never see one."""

        def search(self, queries_QD: np.ndarray, num_results: int, **how: object) -> tuple:
            assert np.isfinite(queries_QD).all()
            return snapshot.pipeline._searcher.search(queries_QD, num_results)

        def search_best(self, queries_QD: np.ndarray, num_results: int, **kwargs: Any) -> None:
            return None

    overflowing = Pipeline(
        vectors_ND=snapshot.vectors_ND,
        encoder=Overflowing(),
        searcher=Strict(),
        filter_cache=snapshot.filter_cache,
        max_history_length=MAX_HISTORY,
    )
    asked = [query([row], 5) for row in range(4)]
    answers = overflowing.run(asked)
    for place in (0, 2):
        assert_right(answers[place], small_version, [place], asked[place])
    for place in (1, 3):
        assert isinstance(answers[place], BundleMismatchError)
        assert "finite" in str(answers[place])


def test_one_item_and_one_interest_history(tmp_path: Path) -> None:
    version = SmallVersion(num_items=10, seed=9)
    loaded = load(version, tmp_path, max_batch_size=1)
    assert_right(loaded.pipeline.run([query([7], 100)])[0], version, [7], query([7], 100))


def test_buckets_are_powers_of_two_and_end_at_the_largest_batch() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(8) == (1, 2, 4, 8)
    assert bucket_sizes(6) == (1, 2, 4, 6)


def test_padding_does_not_matter(snapshot: Snapshot) -> None:
    """Values in the padded slots of a history change no bit of the answer."""
    encoder = snapshot.pipeline._encoder
    rng = np.random.default_rng(0)
    history_BLD = rng.standard_normal((2, MAX_HISTORY, 8)).astype(np.float32)
    other_BLD = history_BLD.copy()
    other_BLD[:, 3:] = 1e6
    lengths_B = np.array([3, 2])
    for first, second in zip(
        encoder.encode(history_BLD, lengths_B), encoder.encode(other_BLD, lengths_B), strict=True
    ):
        np.testing.assert_array_equal(first, second)
    assert not encoder.encode(history_BLD, lengths_B)[1][0, :, 3:].any()


class Nearsighted:
    """An approximate index: it finds the first few items of a few, and nothing for other interests."""

    def __init__(self, snapshot: Snapshot, num_found: int) -> None:
        self._searcher = snapshot.pipeline._searcher
        self._num_found = num_found

    def search(self, queries_QD: np.ndarray, num_results: int, **how: object) -> tuple:
        scores_QS, rows_QS = self._searcher.search(queries_QD, num_results)
        rows_QS[:, self._num_found :], scores_QS[:, self._num_found :] = -1, -3e38
        rows_QS[1::2], scores_QS[1::2] = -1, -3e38
        return scores_QS, rows_QS

    def search_all(self, *given: Any) -> tuple:
        return self._searcher.search_all(*given)

    def search_best(self, queries_QD: np.ndarray, num_results: int, **kwargs: Any) -> None:
        return None


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_an_answer_is_never_short_while_eligible_items_exist(
    policy: str, snapshot: Snapshot, small_version: SmallVersion
) -> None:
    nearsighted = Pipeline(
        vectors_ND=snapshot.vectors_ND,
        encoder=snapshot.pipeline._encoder,
        searcher=Nearsighted(snapshot, 12),
        filter_cache=snapshot.filter_cache,
        max_history_length=MAX_HISTORY,
    )
    excluded = list(range(0, 60, 2))
    asked = [
        replace(each, merge_policy=POLICIES[policy])
        for each in (
            query([3, 4], 5),
            query([3, 4], 25, excluded),
            query([3, 4], 100, excluded),
            query([3, 4], 100),
        )
    ]
    answers = nearsighted.run(asked)
    assert [len(answer.merged.rows_M) for answer in answers] == [5, 25, 30, 60]
    for answer, question in zip(answers, asked, strict=True):
        assert not set(answer.merged.rows_M.tolist()) & set(question.excluded_rows.tolist())
    if policy == "max-score":  # the index found too few for the second, so its answer is exact
        assert_right(answers[1], small_version, [3, 4], asked[1])


def test_each_query_of_a_batch_has_its_own_policy(snapshot: Snapshot) -> None:
    plain = query([3, 4], 9)
    asked = [plain, *(replace(plain, merge_policy=POLICIES[policy]) for policy in POLICIES)]
    by_default, *answers = (answer.merged for answer in snapshot.pipeline.run(asked))
    found = dict(zip(POLICIES, answers, strict=True))
    assert by_default.rows_M.tolist() == found["max-score"].rows_M.tolist()
    counts = np.bincount(found["equal-quota"].interest_numbers_M, minlength=NUM_INTERESTS)
    assert counts.tolist() == [3, 3, 3]
    first_round = found["round-robin"].interest_numbers_M[:NUM_INTERESTS]
    assert sorted(first_round.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("num_hidden", [0, 10])
def test_a_policy_states_its_depth_and_whether_it_needs_each_list(
    num_hidden: int, snapshot: Snapshot, small_version: SmallVersion
) -> None:
    every_third = MergePolicy(
        name="every-third",
        merge=lambda results, excluded_rows, num_candidates, _: best_items(
            results, excluded_rows, 3 * num_candidates
        ).at(slice(2, None, 3)),
        needs_each_list=False,
        depth_factor=3,
    )
    hidden = small_version.best([3, 4], num_hidden)
    pipeline = snapshot.with_hidden(HiddenIds(ids=tuple(small_version.ids[row] for row in hidden))).pipeline
    plain = query([3, 4], 5, [7, 8])
    found, usual = pipeline.run([replace(plain, merge_policy=every_third), plain])
    expected = small_version.best([3, 4], 15, [7, 8, *hidden])
    assert found.merged.rows_M.tolist() == expected[2::3]
    assert usual.merged.rows_M.tolist() == expected[:5]
