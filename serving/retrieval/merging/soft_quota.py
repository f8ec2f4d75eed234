"""Soft quota: each candidate of an interest makes its next one cost more, so interests share the list.

Interests choose one candidate at a time. The next one is the item with the largest

    score - 0.3 x spread x ln(1 + number of candidates that its interest has already)

where *spread* is the difference between the first and the last score of the list by maximum score:
a unit that fits every user and model. A penalty that grows ever more slowly is a submodular
objective: a single good interest gets more places than the others, but hardly ever all.

The merge is exact, as for `round_robin.py`: an interest passes over excluded items and items taken
before, and over no others.

Legend: K interests, S results per interest, L history length, M candidates, T results taken.
"""

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.max_score import best_items
from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults
from re4.serving.retrieval.merging.round_robin import present_interests

PENALTY: Final = 0.3
"""Of one spread. It costs no recall on the logs of benchmarks/results/quality/interests.md."""


def _merge(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> MergedList:
    """Merge; candidates come in the order of choosing. Of equal worths the lower interest is first."""
    scores_KS, rows_KS = results.scores_KS, results.rows_KS
    by_score_M = best_items(results, excluded_rows, num_candidates).scores_M
    spread = float(by_score_M[0] - by_score_M[-1]) if len(by_score_M) else 0.0
    costs = (PENALTY * spread * np.log1p(np.arange(num_candidates + 1))).tolist()
    is_eligible_KS = (rows_KS >= 0) & ~np.isin(rows_KS, excluded_rows, kind="sort")
    # The first M eligible results of a list are enough: other interests take fewer than M of them.
    places = [np.flatnonzero(eligible_S)[:num_candidates] for eligible_S in is_eligible_KS]
    rows = [rows_S[at].tolist() for rows_S, at in zip(rows_KS, places, strict=True)]
    scores = [scores_S[at].tolist() for scores_S, at in zip(scores_KS, places, strict=True)]
    offers = [(-scores[k][0], k) for k in np.flatnonzero(present_interests(attention_KL)).tolist() if rows[k]]
    heapq.heapify(offers)
    next_in_list, num_taken_by = [0] * len(rows), [0] * len(rows)
    taken_rows: set[int] = set()
    taken: list[tuple[int, int]] = []
    while offers and len(taken) < num_candidates:
        _, k = offers[0]
        at = next_in_list[k]
        if rows[k][at] not in taken_rows:
            taken_rows.add(rows[k][at])
            taken.append((k, int(places[k][at])))
            num_taken_by[k] += 1
        next_in_list[k] = at = at + 1
        if at < len(rows[k]):
            heapq.heapreplace(offers, (costs[num_taken_by[k]] - scores[k][at], k))
        else:
            heapq.heappop(offers)
    numbers_T, places_T = np.array(taken, np.int64).reshape(-1, 2).T
    return MergedList(rows_KS[numbers_T, places_T], scores_KS[numbers_T, places_T], numbers_T)


SOFT_QUOTA: Final = MergePolicy(name="soft-quota", merge=_merge, is_ordered_by_score=False)
