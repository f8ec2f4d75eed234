"""Round robin: interests take turns, and the list keeps that order: every prefix is balanced.

The interest whose best item scores highest is first in each round. Each interest takes its best
item that is still free. The merge is exact: an interest passes over excluded items and items taken
before, and over no others. So lists of M + (number excluded) results give the same list as the
whole catalogue.

Legend: K interests, S results per interest, L history length, M candidates, T results taken.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults


def take_turns(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    quotas_K: Sequence[int],
) -> MergedList:
    """Return results in the order in which the interests took them.

    Turns end when there are enough candidates, all quotas are used, or all lists are exhausted. An
    interest whose list is exhausted drops out; the others continue.

    Args:
        results: The lists of all interests.
        excluded_rows: Rows that no interest may take, ascending and unique.
        num_candidates: How many results are taken in all.
        quotas_K: How many results each interest may take at most.
    """
    scores_KS, rows_KS = results.scores_KS, results.rows_KS
    is_eligible_KS = (rows_KS >= 0) & ~np.isin(rows_KS, excluded_rows, kind="sort")
    # The first M eligible results of a list are enough: other interests take fewer than M of them.
    places = [np.flatnonzero(eligible_S)[:num_candidates].tolist() for eligible_S in is_eligible_KS]
    rows = [rows_S[at].tolist() for rows_S, at in zip(rows_KS, places, strict=True)]
    active = sorted(
        (k for k, at in enumerate(places) if at and quotas_K[k]),
        key=lambda k: (-scores_KS[k, places[k][0]], k),
    )
    next_in_list = [0] * len(places)
    num_taken_by = [0] * len(places)
    taken_rows: set[int] = set()
    taken: list[tuple[int, int]] = []
    while active and len(taken) < num_candidates:
        still_active = []
        for k in active:
            if len(taken) == num_candidates:
                break
            at = next_in_list[k]
            while at < len(rows[k]) and rows[k][at] in taken_rows:
                at += 1
            next_in_list[k] = at + 1
            if at >= len(rows[k]):
                continue
            taken_rows.add(rows[k][at])
            taken.append((k, places[k][at]))
            num_taken_by[k] += 1
            if num_taken_by[k] < quotas_K[k]:
                still_active.append(k)
        active = still_active
    numbers_T, places_T = np.array(taken, np.int64).reshape(-1, 2).T
    return MergedList(rows_KS[numbers_T, places_T], scores_KS[numbers_T, places_T], numbers_T)


def present_interests(attention_KL: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which interests a user has, bool [K]: some encoders give short histories fewer than K.

    A missing interest has no attention and repeats the first one, which must not be counted twice.
    """
    return np.asarray(attention_KL.any(axis=1))


def _merge(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> MergedList:
    no_limit_K = np.where(present_interests(attention_KL), num_candidates, 0).tolist()
    return take_turns(results, excluded_rows, num_candidates, no_limit_K)


ROUND_ROBIN: Final = MergePolicy(name="round-robin", merge=_merge, is_ordered_by_score=False)
