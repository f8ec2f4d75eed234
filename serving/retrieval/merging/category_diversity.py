"""Category diversity: scores are traded for variety, by ComiRec's controllable aggregation.

Cen et al., KDD 2020: choose candidates for a large sum of scores plus a factor times the number of
pairs of candidates of different categories, greedily. The next candidate is the one with the
largest

    score + factor x (how many of those chosen before are of another category)

among the best items by maximum score, `POOL_FACTOR` times as many as candidates are wanted. Of
equal gains the item with the higher score is chosen.

Items of a multi-valued attribute are of one category where they share a value. All items without a
value are of one category.

Legend: K interests, S results per interest, L history length, P items to choose from, G groups of
items that have the same values, V values, E entries (one for each value of each item).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attribute
from re4.serving.retrieval.merging.max_score import MAX_SCORE, best_items
from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults

POOL_FACTOR: Final = 4
"""Interests that agree find the same items. Without more items than candidates there would be no
choice."""


def category_diversity(category: Attribute, factor: float) -> MergePolicy:
    """Return the policy `category-diversity` for an attribute and a factor.

    Candidates come in the order in which they were chosen.

    Args:
        category: The attribute whose values are the categories.
        factor: In units of score, 0 or more; 0 is `max-score`.
    """

    def merge(
        results: SearchResults,
        excluded_rows: NDArray[np.int64],
        num_candidates: int,
        _: NDArray[np.float32],
    ) -> MergedList:
        pool = best_items(results, excluded_rows, POOL_FACTOR * num_candidates)
        if not len(pool.rows_M):
            return pool
        groups_P, is_alike_GG = _groups(category, pool.rows_M)
        chosen = _choose(pool.scores_M, groups_P, is_alike_GG, factor, num_candidates)
        return pool.at(np.array(chosen))

    if not factor:
        return MAX_SCORE
    return MergePolicy(
        name="category-diversity",
        merge=merge,
        needs_each_list=False,
        depth_factor=POOL_FACTOR,
        is_ordered_by_score=False,
    )


def _choose(
    scores_P: NDArray[np.float32],
    groups_P: NDArray[np.int64],
    is_alike_GG: NDArray[np.bool_],
    factor: float,
    num_candidates: int,
) -> list[int]:
    """Return places in the pool, in the order of choosing.

    Items of a group have the same values, so only the best item left in each group is compared.
    Each chosen item lowers the groups of its own category by the factor; that gives the same order
    as raising all others.

    Args:
        scores_P: Best first.
        groups_P: The group of each item, 0 to G-1.
        is_alike_GG: Which groups are of one category.
        factor: The gain of an item of another category for each chosen item.
        num_candidates: How many to choose at most.
    """
    num_groups = len(is_alike_GG)
    members = np.argsort(groups_P, kind="stable")
    ends_G = np.cumsum(np.bincount(groups_P, minlength=num_groups))
    next_G = [0, *ends_G[:-1].tolist()]
    ends, places = ends_G.tolist(), members.tolist()
    scores = scores_P.tolist()
    heads_G = scores_P[members[next_G]].astype(np.float64)
    lost_G = np.zeros(num_groups)
    chosen: list[int] = []
    while len(chosen) < min(num_candidates, len(scores)):
        worth_G = heads_G - lost_G
        group = int(worth_G.argmax())
        equal = np.flatnonzero(worth_G == worth_G[group])
        if len(equal) > 1:
            group = min(equal.tolist(), key=lambda g: places[next_G[g]])
        chosen.append(places[next_G[group]])
        next_G[group] += 1
        has_more = next_G[group] < ends[group]
        heads_G[group] = scores[places[next_G[group]]] if has_more else -np.inf
        np.add(lost_G, factor, out=lost_G, where=is_alike_GG[group])
    return chosen


def _groups(category: Attribute, rows_P: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return each item's group, and which groups are of one category: `groups_P`, `is_alike_GG`."""
    codes_E, lengths_P = category.codes_of(rows_P)
    if lengths_P is None:
        codes_G, groups_P = np.unique(codes_E, return_inverse=True)
        return groups_P, np.eye(len(codes_G), dtype=np.bool_)
    ends = np.cumsum(lengths_P).tolist()
    starts = [0, *ends[:-1]]
    numbers: dict[bytes, int] = {}
    lists_G: list[NDArray[np.integer]] = []
    groups = []
    for start, end in zip(starts, ends, strict=True):
        own = codes_E[start:end]
        groups.append(numbers.setdefault(own.tobytes(), len(numbers)))  # an item's codes are in order
        if len(numbers) > len(lists_G):
            lists_G.append(own)
    return np.array(groups, np.int64), _shares_a_code(lists_G)


def _shares_a_code(lists_G: Sequence[NDArray[np.integer]]) -> NDArray[np.bool_]:
    """Return which lists share a code, [G, G]; each with itself, also the empty one."""
    owners_E = np.repeat(np.arange(len(lists_G)), [len(codes) for codes in lists_G])
    by_code = np.argsort(np.concatenate(lists_G), kind="stable")
    owners_E = owners_E[by_code]
    _, starts_V, sizes_V = np.unique(np.concatenate(lists_G)[by_code], return_index=True, return_counts=True)
    # All pairs of groups that have a code: each group beside all groups from the first to the last
    # of its code.
    num_pairs_E = np.repeat(sizes_V, sizes_V)
    firsts_E = np.repeat(starts_V, sizes_V) - (np.cumsum(num_pairs_E) - num_pairs_E)
    others = owners_E[np.repeat(firsts_E, num_pairs_E) + np.arange(int(num_pairs_E.sum()))]
    is_alike_GG = np.eye(len(lists_G), dtype=np.bool_)
    is_alike_GG[np.repeat(owners_E, num_pairs_E), others] = True
    return is_alike_GG
