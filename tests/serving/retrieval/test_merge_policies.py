"""Every policy against its definition, by the simplest code that follows it; and what holds for all of them.

Definitions are followed on lists of the whole catalogue; the policies get lists that are cut where the
pipeline cuts them, or end early as those of an approximate index do.
"""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from re4.bundle.scoring.exact_search import exact_search
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.validation import POLICY_OF
from re4.serving.protocol.policy_names import enum_name, policy_names
from re4.serving.retrieval.merging import POLICIES, SearchResults, soft_quota
from re4.serving.retrieval.merging.quotas import attention_quotas, equal_quotas


class Question:
    """A catalogue, interests and a request; no two scores of an interest are equal."""

    def __init__(
        self, seed: int, num_items: int, num_interests: int, num_excluded: int, num_candidates: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.items_ND = rng.standard_normal((num_items, 4)).astype(np.float32)
        # Some interests are near each other, so that they like the same items.
        centre_D = rng.standard_normal(4)
        self.interests_KD = (
            centre_D + rng.choice([0.05, 2.0]) * rng.standard_normal((num_interests, 4))
        ).astype(np.float32)
        attention_KL = rng.exponential(size=(num_interests, rng.integers(1, 6))) ** 3
        self.attention_KL = (attention_KL / attention_KL.sum(axis=1, keepdims=True)).astype(np.float32)
        self.excluded = rng.permutation(num_items)[:num_excluded].tolist()
        self.num_candidates = num_candidates
        self.scores_KS, self.rows_KS = exact_search(self.interests_KD[:, None], self.items_ND, num_items)
        self.score_of = [
            dict(zip(rows, scores, strict=True))
            for rows, scores in zip(self.rows_KS.tolist(), self.scores_KS.tolist(), strict=True)
        ]

    @property
    def num_eligible(self) -> int:
        return len(self.items_ND) - len(self.excluded)

    def ask(self, policy: str) -> list[tuple[int, float, int]]:
        """Row, score and interest of each candidate, from lists cut as the pipeline cuts them."""
        depth = POLICIES[policy].search_depth(self.num_candidates, len(self.excluded))
        found = POLICIES[policy].merge(
            SearchResults(self.scores_KS[:, :depth], self.rows_KS[:, :depth]),
            np.sort(np.array(self.excluded, np.int64)),
            self.num_candidates,
            self.attention_KL,
        )
        return list(zip(*(part.tolist() for part in found), strict=True))

    def by_turns(self, quotas: list[int]) -> list[tuple[int, float, int]]:
        """The definition: in turns, each interest takes its best item that is still free."""
        lists = [[row for row in rows if row not in self.excluded] for rows in self.rows_KS.tolist()]
        order = sorted(range(len(lists)), key=lambda k: -self.score_of[k][lists[k][0]]) if lists[0] else []
        chosen: list[tuple[int, float, int]] = []
        places_left = list(quotas)
        while len(chosen) < min(self.num_candidates, self.num_eligible):
            before = len(chosen)
            for k in order:
                free = [row for row in lists[k] if row not in {row for row, _, _ in chosen}]
                if free and places_left[k] and len(chosen) < self.num_candidates:
                    chosen.append((free[0], self.score_of[k][free[0]], k))
                    places_left[k] -= 1
            if len(chosen) == before:
                break
        return chosen


questions = st.builds(
    Question,
    seed=st.integers(0, 2**32 - 1),
    num_items=st.integers(1, 40),
    num_interests=st.integers(1, 5),
    num_excluded=st.integers(0, 12),
    num_candidates=st.integers(1, 30),
)


@given(questions, st.sampled_from(sorted(POLICIES)))
def test_no_policy_returns_duplicates_or_excluded_items_or_too_few(question: Question, policy: str) -> None:
    found = question.ask(policy)
    rows = [row for row, _, _ in found]
    assert len(rows) == len(set(rows)) == min(question.num_candidates, question.num_eligible)
    assert not set(rows) & set(question.excluded)
    assert all(score == question.score_of[k][row] for row, score, k in found)
    assert found == question.ask(policy), "not repeatable"
    if POLICIES[policy].is_ordered_by_score:
        assert [(-score, row) for row, score, _ in found] == sorted((-score, row) for row, score, _ in found)


@given(questions)
def test_round_robin_is_the_order_of_choosing(question: Question) -> None:
    unlimited = [question.num_candidates] * len(question.interests_KD)
    assert question.ask("round-robin") == question.by_turns(unlimited)


@given(questions)
def test_soft_quota_takes_the_item_with_the_largest_worth(question: Question) -> None:
    """The definition on lists of the whole catalogue, one candidate after the other."""
    best = question.ask("max-score")
    unit = 0.3 * (best[0][1] - best[-1][1]) if best else 0.0
    free = set(range(len(question.items_ND))) - set(question.excluded)
    counts = [0] * len(question.interests_KD)
    expected = []
    while free and len(expected) < question.num_candidates:
        worth = {
            (row, k): scores[row] - unit * math.log1p(counts[k])
            for k, scores in enumerate(question.score_of)
            for row in free
        }
        row, k = max(worth, key=lambda each: worth[each])
        expected.append((row, question.score_of[k][row], k))
        free.discard(row)
        counts[k] += 1
    assert question.ask("soft-quota") == expected


@given(questions)
def test_compiled_soft_quota_equals_the_one_in_python(question: Question) -> None:
    assert soft_quota.open_compiled() is not None
    compiled = question.ask("soft-quota")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_quota, "open_compiled", lambda: None)
        assert question.ask("soft-quota") == compiled


def test_soft_quota_passes_over_missing_results_in_the_midst_of_a_list() -> None:
    scores_KS = np.array([[2.0, -np.inf, 1.0], [-np.inf, 1.5, 0.5]], np.float32)
    results = SearchResults(scores_KS, np.array([[4, -1, 6], [-1, 5, 6]]))
    found = POLICIES["soft-quota"].merge(results, np.array([5]), 3, np.ones((2, 1), np.float32))
    assert found.rows_M.tolist() == [4, 6]


def test_soft_quota_shares_a_list_that_one_interest_would_fill() -> None:
    """The second interest scores lower throughout; its best items come in, the first one keeps more."""
    scores_KS = np.array([np.linspace(2, 1, 40), np.linspace(1.76, 0.76, 40)], np.float32)
    results = SearchResults(scores_KS, np.arange(80).reshape(2, 40))
    attention_KL = np.ones((2, 1), np.float32)
    alone = POLICIES["max-score"].merge(results, np.empty(0, np.int64), 10, attention_KL)
    shared = POLICIES["soft-quota"].merge(results, np.empty(0, np.int64), 10, attention_KL)
    assert set(alone.interest_numbers_M.tolist()) == {0}
    assert Counter(shared.interest_numbers_M.tolist()) == {0: 8, 1: 2}


@given(questions, st.sampled_from(["equal-quota", "attention-quota"]))
def test_quotas_are_kept_and_filled_by_turns(question: Question, policy: str) -> None:
    assume(question.num_eligible >= question.num_candidates)
    if policy == "equal-quota":
        quotas = equal_quotas(np.ones(len(question.interests_KD), bool), question.num_candidates)
    else:
        quotas = attention_quotas(question.attention_KL, question.num_candidates)
    found = question.ask(policy)
    counts = Counter(k for _, _, k in found)
    assert [counts[k] for k in range(len(quotas))] == quotas
    assert sorted(found) == sorted(question.by_turns(quotas))


@given(questions, st.sampled_from(sorted(POLICIES)), st.integers(0, 2**32 - 1))
def test_never_short_while_a_list_holds_an_eligible_item(question: Question, policy: str, seed: int) -> None:
    """Lists as an approximate index gives them: each ends somewhere, the rest is -1."""
    rng = np.random.default_rng(seed)
    rows_KS, scores_KS = question.rows_KS.copy(), question.scores_KS.copy()
    for k in range(len(rows_KS)):
        end = rng.integers(rows_KS.shape[1] + 1)
        rows_KS[k, end:], scores_KS[k, end:] = -1, -3e38
    excluded_rows = np.sort(np.array(question.excluded, np.int64))
    found = POLICIES[policy].merge(
        SearchResults(scores_KS, rows_KS), excluded_rows, question.num_candidates, question.attention_KL
    )
    eligible = set(rows_KS.reshape(-1).tolist()) - {-1} - set(question.excluded)
    assert len(found.rows_M) == min(question.num_candidates, len(eligible))
    assert set(found.rows_M.tolist()) <= eligible
    assert len(set(found.rows_M.tolist())) == len(found.rows_M)


@pytest.mark.parametrize("policy", ["round-robin", "equal-quota"])
def test_the_last_place_goes_to_another_interest_where_the_next_one_has_no_more(policy: str) -> None:
    results = SearchResults(
        scores_KS=np.array([[9, 8, -3e38], [7, 6, 5]], np.float32),
        rows_KS=np.array([[1, 2, -1], [1, 2, 3]]),
    )
    found = POLICIES[policy].merge(results, np.empty(0, np.int64), 3, np.ones((2, 1), np.float32))
    assert sorted(found.rows_M.tolist()) == [1, 2, 3]


def test_equal_quotas_differ_by_one_at_most_and_add_up() -> None:
    four = np.ones(4, bool)
    assert equal_quotas(four, 10) == [3, 3, 2, 2]
    assert equal_quotas(four, 3) == [1, 1, 1, 0]
    assert equal_quotas(np.ones(1, bool), 7) == [7]
    assert equal_quotas(np.array([True, False, True]), 5) == [3, 0, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_missing_interest_is_not_counted_twice(policy: str) -> None:
    """Encoders with fewer interests for short histories repeat the first one, without attention."""
    question = Question(seed=3, num_items=40, num_interests=2, num_excluded=0, num_candidates=12)
    wanted = question.ask(policy)
    question.scores_KS = np.concatenate([question.scores_KS, question.scores_KS[:1]])
    question.rows_KS = np.concatenate([question.rows_KS, question.rows_KS[:1]])
    question.attention_KL = np.concatenate([question.attention_KL, 0 * question.attention_KL[:1]])
    assert question.ask(policy) == wanted


def test_attention_mass_is_the_share_of_the_historys_votes() -> None:
    # Interest 0 alone attends to the first item; each of the others divides its vote as written below.
    attention_KL = np.array([[0.5, 0.25, 0.25], [0, 0.5, 0.5], [0, 0.25, 0.75]], np.float32)
    votes = [
        1 + Fraction(1, 4) + Fraction(1, 6),
        Fraction(1, 2) + Fraction(1, 3),
        Fraction(1, 4) + Fraction(1, 2),
    ]
    assert sum(votes) == 3
    assert attention_quotas(attention_KL, 36) == [17, 10, 9]
    assert attention_quotas(attention_KL, 1) == [1, 0, 0]
    assert attention_quotas(np.full((3, 2), 0.5, np.float32), 4) == [2, 1, 1]
    unseen = np.array([[1, 0], [1, 0]], np.float32)  # no interest attends to the second item
    assert attention_quotas(unseen, 4) == [2, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 300))
def test_attention_quotas_add_up_and_are_within_one_of_the_exact_share(
    seed: int, num_interests: int, num_candidates: int
) -> None:
    attention_KL = np.random.default_rng(seed).dirichlet(np.ones(5), size=num_interests).astype(np.float32)
    quotas = attention_quotas(attention_KL, num_candidates)
    assert sum(quotas) == num_candidates
    votes_KL = attention_KL.astype(np.float64) / attention_KL.astype(np.float64).sum(axis=0)
    shares_K = votes_KL.sum(axis=1) / 5 * num_candidates
    assert np.all(np.abs(np.array(quotas) - shares_K) < 1 + 1e-9)


def test_every_policy_can_be_asked_for_and_every_value_is_a_policy() -> None:
    assert set(policy_names()) == {*POLICIES, "category-diversity"}
    values = {pb.MERGE_POLICY_UNSPECIFIED, pb.MERGE_POLICY_CATEGORY_DIVERSITY}
    assert set(POLICY_OF) | values == set(pb.MergePolicy.values())
    for name, policy in POLICIES.items():
        assert POLICY_OF[pb.MergePolicy.Value(enum_name(name))] is policy
