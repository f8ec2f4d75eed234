"""Filters against brute force: the allowed items, the best of them, and no answer is short."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_kind_versions import KIND_SETTINGS, NUM_ITEMS, version_of
from small_bundles import MAX_HISTORY, SmallVersion

from re4.bundle.attributes.reader import Attributes
from re4.bundle.verify import verify_version
from re4.serving.retrieval.filtered_search import SearchOptions
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.merging import POLICIES, SearchResults
from re4.serving.retrieval.merging.category_diversity import category_diversity
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import load_snapshot

Filter: TypeAlias = tuple[str, list[str], bool]

VALUES = {
    "colour": ["red", "green", "blue", "no such colour"],
    "tags": [*"abcde", "no such tag"],
    "is_even": ["true", "false"],
}


@st.composite
def filters(draw: st.DrawFn, min_size: int = 1) -> list[Filter]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=min_size, max_size=3))
    return [
        (name, draw(st.lists(st.sampled_from(VALUES[name]), min_size=1, unique=True)), draw(st.booleans()))
        for name in names
    ]


def passing(version: SmallVersion, asked: list[Filter]) -> list[int]:
    """The definition, an item at a time."""

    def has(row: int, name: str, values: list[str]) -> bool:
        item = version.attributes[name][row]
        own = item if isinstance(item, list) else [str(item).lower()]
        return any(value in own for value in values)

    return [
        row
        for row in range(version.num_items)
        if all(has(row, name, values) != is_drop for name, values, is_drop in asked)
    ]


def conditions(attributes: Attributes, asked: list[Filter]) -> tuple[Condition, ...]:
    codes = [attributes[name].value_codes(values).tolist() for name, values, _ in asked]
    return tuple(
        Condition(name, tuple(sorted(set(own) - {-1})), is_drop)
        for (name, _, is_drop), own in zip(asked, codes, strict=True)
    )


class Served:
    """A version of an index kind, loaded."""

    def __init__(self, kind: str, folder: Path) -> None:
        flat = SmallVersion(num_items=NUM_ITEMS, seed=8, has_attributes=True)
        self.kind = kind
        self.version = flat if kind == "flat" else version_of(kind)
        path = folder / self.version.publish(folder)
        self.snapshot = load_snapshot(path, verify_version(path), max_batch_size=8)


@pytest.fixture(scope="module", params=["flat", *KIND_SETTINGS])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["one by one", "with a selector"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """However few items pass, they are searched in this way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "re4.serving.retrieval.filters.MAX_EXACT_ROWS", 0 if "selector" in request.param else 1 << 15
        )
        yield request.param


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    users=st.lists(
        st.tuples(filters(min_size=0), st.sampled_from([1, 9, 120, 1000]), st.sampled_from([0, 5, 300])),
        min_size=1,
        max_size=4,
    ),
    policy=st.sampled_from([*sorted(POLICIES), "category-diversity"]),
    effort=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_allowed_items_and_as_many_as_there_are(
    served: Served,
    way: str,
    users: list[tuple[list[Filter], int, int]],
    policy: str,
    effort: float,
    seed: int,
) -> None:
    version, snapshot, rng = served.version, served.snapshot, np.random.default_rng(seed)
    snapshot.filter_cache._results.clear()  # those of the other way
    merge_policy = POLICIES.get(policy)
    if merge_policy is None:
        merge_policy = category_diversity(snapshot.attributes["tags"], float(rng.exponential()))
    queries = [
        Query(
            history_rows_L=rng.integers(NUM_ITEMS, size=rng.integers(1, MAX_HISTORY + 1)),
            num_candidates=num_candidates,
            excluded_rows=np.sort(rng.permutation(NUM_ITEMS)[:num_excluded]),
            options=SearchOptions(conditions(snapshot.attributes, asked), effort),
            merge_policy=merge_policy,
        )
        for asked, num_candidates, num_excluded in users
    ]
    answers = snapshot.pipeline.run(queries)
    for (asked, _, _), query, answer in zip(users, queries, answers, strict=True):
        merged = answer.merged
        eligible = set(passing(version, asked)) - set(query.excluded_rows.tolist())
        rows = merged.rows_M.tolist()
        assert len(rows) == len(set(rows)) == min(query.num_candidates, len(eligible))
        assert set(rows) <= eligible
        scores_NK = version.vectors_ND @ answer.interests_KD.T
        named_M = scores_NK[merged.rows_M, merged.interest_numbers_M]
        np.testing.assert_allclose(merged.scores_M, named_M, rtol=1e-4, atol=1e-4)
        if policy in {"max-score", "category-diversity"}:  # true scores, whatever each interest came across
            true_M = scores_NK[merged.rows_M].max(axis=1)
            np.testing.assert_allclose(merged.scores_M, true_M, rtol=1e-4, atol=1e-4)
        is_exact = served.kind == "flat" or (way == "one by one" and asked)
        if is_exact and policy == "max-score":
            best = sorted(eligible, key=lambda row: -scores_NK[row].max())[: len(rows)]
            np.testing.assert_allclose(merged.scores_M, scores_NK[best].max(axis=1), rtol=1e-4, atol=1e-4)
        if is_exact and policy != "max-score":
            np.testing.assert_array_equal(rows, best_by_policy(version, query, sorted(eligible), answer))


def best_by_policy(version: SmallVersion, query: Query, eligible: list[int], answer: object) -> list[int]:
    """The policy on complete lists of the eligible items only."""
    scores_KA = answer.interests_KD @ version.vectors_ND[eligible].T
    order_KA = np.argsort(-scores_KA, axis=1, kind="stable")
    merged = query.merge_policy.merge(
        SearchResults(np.take_along_axis(scores_KA, order_KA, 1), np.array(eligible, np.int64)[order_KA]),
        np.empty(0, np.int64),
        query.num_candidates,
        answer.attention_KL,
    )
    return merged.rows_M.tolist()
