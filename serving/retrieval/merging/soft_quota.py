"""Soft quota: each candidate of an interest makes its next one cost more, so interests share the list.

Interests choose one candidate at a time. The next one is the item with the largest

    score - 0.3 x spread x ln(1 + number of candidates that its interest has already)

where *spread* is the difference between the first and the last score of the list by maximum score:
a unit that fits every user and model. A penalty that grows ever more slowly is a submodular
objective: a single good interest gets more places than the others, but hardly ever all.

The merge is exact, as for `round_robin.py`: an interest passes over excluded items and items taken
before, and over no others. An approximate index need not find complete lists for it: see `BALANCE`.

Legend: K interests, S results per interest, L history length, M candidates, T results taken.
"""

import ctypes
import heapq
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.common.native_code import is_native_allowed, load_optional_library
from re4.serving.retrieval.merging.max_score import best_items
from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults
from re4.serving.retrieval.merging.round_robin import present_interests

PENALTY: Final = 0.3
"""Of one spread. It costs no recall on the logs of benchmarks/results/quality/interests.md."""
BALANCE: Final = 0.4
"""Of .3, .4 and .5, the one with which a shared search budget finds most of the exact list at 10^5 items.
At 10^6 it is level with .5 and costs less."""
_SOURCE: Final = Path(__file__).with_name("soft_quota.c")


def _merge(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> MergedList:
    """Merge; candidates come in the order of choosing. Of equal worths the lower interest is first."""
    compiled = open_compiled()
    is_present_K = present_interests(attention_KL)
    if compiled is None:
        places_T = _choose(results, excluded_rows, num_candidates, is_present_K)
    else:
        places_T = _choose_compiled(compiled, results, excluded_rows, num_candidates, is_present_K)
    return MergedList(
        results.rows_KS.take(places_T),
        results.scores_KS.take(places_T),
        places_T // results.rows_KS.shape[1],
    )


def _choose(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    is_present_K: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the places [T] of the candidates in the flat lists."""
    scores_KS, rows_KS = results.scores_KS, results.rows_KS
    by_score_M = best_items(results, excluded_rows, num_candidates).scores_M
    spread = float(by_score_M[0] - by_score_M[-1]) if len(by_score_M) else 0.0
    costs = (PENALTY * spread * np.log1p(np.arange(num_candidates + 1))).tolist()
    is_eligible_KS = (rows_KS >= 0) & ~np.isin(rows_KS, excluded_rows, kind="sort")
    # The first M eligible results of a list are enough: other interests take fewer than M of them.
    places = [np.flatnonzero(eligible_S)[:num_candidates] for eligible_S in is_eligible_KS]
    rows = [rows_S[at].tolist() for rows_S, at in zip(rows_KS, places, strict=True)]
    scores = [scores_S[at].tolist() for scores_S, at in zip(scores_KS, places, strict=True)]
    offers = [(-scores[k][0], k) for k in np.flatnonzero(is_present_K).tolist() if rows[k]]
    heapq.heapify(offers)
    next_in_list, num_taken_by = [0] * len(rows), [0] * len(rows)
    taken_rows: set[int] = set()
    taken: list[int] = []
    while offers and len(taken) < num_candidates:
        _, k = offers[0]
        at = next_in_list[k]
        if rows[k][at] not in taken_rows:
            taken_rows.add(rows[k][at])
            taken.append(k * rows_KS.shape[1] + int(places[k][at]))
            num_taken_by[k] += 1
        next_in_list[k] = at = at + 1
        if at < len(rows[k]):
            heapq.heapreplace(offers, (costs[num_taken_by[k]] - scores[k][at], k))
        else:
            heapq.heappop(offers)
    return np.array(taken, np.int64)


def _choose_compiled(
    library: ctypes.CDLL,
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    is_present_K: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the same as `_choose`, by compiled code."""
    scores_KS = np.ascontiguousarray(results.scores_KS, np.float32)
    rows_KS = np.ascontiguousarray(results.rows_KS, np.int64)
    excluded_rows = np.ascontiguousarray(excluded_rows, np.int64)
    places_M = np.empty(num_candidates, np.int64)
    number = library.soft_quota(
        *rows_KS.shape,
        scores_KS.ctypes.data,
        rows_KS.ctypes.data,
        len(excluded_rows),
        excluded_rows.ctypes.data,
        is_present_K.ctypes.data,
        PENALTY,
        _logarithms(num_candidates).ctypes.data,
        num_candidates,
        places_M.ctypes.data,
    )
    if number < 0:
        raise MemoryError(f"no memory to merge {num_candidates} candidates")
    return places_M[:number]


@cache
def open_compiled() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is none. Compiles it where that was never done."""
    if not is_native_allowed():
        return None
    library = load_optional_library(_SOURCE, "soft-quota merges more slowly")
    if library is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.soft_quota.argtypes = [
        *(number, number, address, address, number, address, address),
        *(ctypes.c_double, address, number, address),
    ]
    library.soft_quota.restype = number
    return library


@lru_cache(maxsize=64)
def _logarithms(number: int) -> NDArray[np.float64]:
    return np.log1p(np.arange(number))


SOFT_QUOTA: Final = MergePolicy(name="soft-quota", merge=_merge, balance=BALANCE, is_ordered_by_score=False)
