"""Scores traded for variety: ComiRec's controllable aggregation over a category of the catalogue.

Cen et al., KDD 2020: choose candidates for a large sum of scores plus a factor times the number of pairs of
them that are of different categories, greedily. The next candidate is the one with the largest

    score + factor x (how many of those chosen before are of another category)

among the items that max score has first, `POOL_FACTOR` times as many as are wanted. Equal gains go to the
earlier one of those.

Items of a multi-valued attribute are of one category where they share a value. Items without a value are of
one category, that of those without.

Legend: K interests, S results per interest, L history length, P items to choose from, G groups of items that
have the same values, V values, E entries (one for each value of each item).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attribute
from re4.serving.retrieval.merging.max_score import merge_max_score
from re4.serving.retrieval.merging.policy import Merged

POOL_FACTOR: Final = 4
"""Interests that agree find the same items: without more than are wanted there would be no choice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryDiversity:
    """The policy `category-diversity`, for one attribute and one factor; a `MergePolicy`."""

    category: Attribute
    factor: float
    """In units of score, 0 or more; 0 is max score."""

    def __call__(
        self,
        scores_KS: NDArray[np.float32],
        rows_KS: NDArray[np.int64],
        excluded_rows: NDArray[np.int64],
        num_candidates: int,
        attention_KL: NDArray[np.float32],
    ) -> Merged:
        """Merge: see `MergePolicy`. Candidates come in the order in which they were chosen."""
        num_wanted = POOL_FACTOR * num_candidates if self.factor else num_candidates
        pool = merge_max_score(scores_KS, rows_KS, excluded_rows, num_wanted, attention_KL)
        if not self.factor or not len(pool.rows_M):
            return pool
        groups_P, is_alike_GG = _groups(self.category, pool.rows_M)
        chosen = _choose(pool.scores_M, groups_P, is_alike_GG, self.factor, num_candidates)
        return Merged(pool.rows_M[chosen], pool.scores_M[chosen], pool.interest_numbers_M[chosen])


def _choose(
    scores_P: NDArray[np.float32],
    groups_P: NDArray[np.int64],
    is_alike_GG: NDArray[np.bool_],
    factor: float,
    num_candidates: int,
) -> list[int]:
    """Places in the pool, in the order of choosing.

    Items of a group have the same values, so the best one left stands for all. What is added up is what each
    group loses by those chosen that are alike, which leaves the order as gains would.

    Args:
        scores_P: Best first.
        groups_P: The group of each item, 0 to G-1.
        is_alike_GG: Which groups are of one category.
        factor: What the others gain when an item is chosen.
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
    """The group of each item, and which groups are of one category: `groups_P` and `is_alike_GG`."""
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
    """Which lists of codes have one in common, [G, G]; each has with itself, the empty one too."""
    owners_E = np.repeat(np.arange(len(lists_G)), [len(codes) for codes in lists_G])
    by_code = np.argsort(np.concatenate(lists_G), kind="stable")
    owners_E = owners_E[by_code]
    _, starts_V, sizes_V = np.unique(np.concatenate(lists_G)[by_code], return_index=True, return_counts=True)
    # Every pair of owners of a code: each owner beside all from the first to the last of its code.
    num_pairs_E = np.repeat(sizes_V, sizes_V)
    firsts_E = np.repeat(starts_V, sizes_V) - (np.cumsum(num_pairs_E) - num_pairs_E)
    others = owners_E[np.repeat(firsts_E, num_pairs_E) + np.arange(int(num_pairs_E.sum()))]
    is_alike_GG = np.eye(len(lists_G), dtype=np.bool_)
    is_alike_GG[np.repeat(owners_E, num_pairs_E), others] = True
    return is_alike_GG
