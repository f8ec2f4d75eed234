"""Interests choose in turns, as captains choose teams: the core of every policy that shares places out.

The interest whose best item scores highest goes first, and so on; each takes its best item that nobody has.
Exact: a pick passes over excluded items and earlier picks alone, so lists of M + (number excluded) results
give what lists of the whole catalogue would give.

Legend: K interests, S results per interest, M candidates, P picks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Picks(NamedTuple):
    """Who took which result, in order of choosing."""

    interest_numbers_P: NDArray[np.int64]
    places_P: NDArray[np.int64]
    """Where in the interest's list, 0 to S-1, the result is."""


def draft(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    quotas_K: Sequence[int],
) -> Picks:
    """Let interests choose in turns until all places are taken, quotas are used up, or lists are empty.

    Args:
        scores_KS: Scores of each interest's results, best first.
        rows_KS: Item rows of the results, -1 where an interest found no further item.
        excluded_rows: Rows that nobody may take, ascending and unique.
        num_candidates: Number of places.
        quotas_K: How many places each interest may take at most.
    """
    is_eligible_KS = (rows_KS >= 0) & ~np.isin(rows_KS, excluded_rows, kind="sort")
    # No list is needed further: the others take fewer than M of it.
    places = [np.flatnonzero(eligible_S)[:num_candidates].tolist() for eligible_S in is_eligible_KS]
    rows = [rows_S[at].tolist() for rows_S, at in zip(rows_KS, places, strict=True)]
    choosing = sorted(
        (k for k, at in enumerate(places) if at and quotas_K[k]),
        key=lambda k: (-scores_KS[k, places[k][0]], k),
    )
    next_in_list = [0] * len(places)
    num_taken_by = [0] * len(places)
    taken: set[int] = set()
    picks: list[tuple[int, int]] = []
    while choosing and len(picks) < num_candidates:
        still_choosing = []
        for k in choosing[: num_candidates - len(picks)]:
            at = next_in_list[k]
            while at < len(rows[k]) and rows[k][at] in taken:
                at += 1
            next_in_list[k] = at + 1
            if at >= len(rows[k]):
                continue
            taken.add(rows[k][at])
            picks.append((k, places[k][at]))
            num_taken_by[k] += 1
            if num_taken_by[k] < quotas_K[k]:
                still_choosing.append(k)
        choosing = still_choosing
    picks_P2 = np.array(picks, np.int64).reshape(-1, 2)
    return Picks(picks_P2[:, 0], picks_P2[:, 1])
