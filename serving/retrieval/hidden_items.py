"""Hidden items: out of every answer, at next to no cost.

A selector would slow every search down for the sake of a few rows. So the usual search goes a little deeper,
and hidden rows are dropped from what it found. Only where an interest's list held more of them than that
leaves room for are its nearest items searched again, among the others alone.

Legend: N items, Q queries (requests x interests), D embedding, S results per query.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.exact_search import exact_search
from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.ids.id_map import ItemIds
from re4.serving.retrieval.filters import FEW, Selection
from re4.serving.retrieval.search import Searcher

ROOM: Final = 64
"""How much deeper a search goes, at most: an interest's list rarely holds so many hidden rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenRows:
    """The rows of one version that no answer may hold. Nothing in it changes; safe to share between
    threads."""

    mask_N: NDArray[np.bool_]
    num_rows: int

    @classmethod
    def of(cls, hidden: HiddenIds, item_ids: ItemIds, num_items: int) -> "HiddenRows | None":
        """The hidden items that a version has; None where it has none of them."""
        rows = item_ids.rows(hidden.of_kind(item_ids.kind)) if hidden.ids else np.empty(0, np.int64)
        known = np.unique(rows[rows >= 0])
        if not known.size:
            return None
        mask_N = np.zeros(num_items, np.bool_)
        mask_N[known] = True
        return cls(mask_N=mask_N, num_rows=len(known))

    @cached_property
    def others(self) -> Selection:
        """All items that are not hidden."""
        return _selection(~self.mask_N)

    def without(self, selection: Selection) -> Selection:
        """What passes a filter, without what is hidden."""
        if selection.few_rows_S is not None:
            return Selection(rows_S=selection.few_rows_S[~self.mask_N[selection.few_rows_S]])
        mask_N = np.zeros(len(self.mask_N), np.bool_)
        mask_N[selection.rows()] = True
        return _selection(mask_N & ~self.mask_N)


def _selection(mask_N: NDArray[np.bool_]) -> Selection:
    if np.count_nonzero(mask_N) <= FEW:
        return Selection(rows_S=np.flatnonzero(mask_N))
    return Selection(mask_N=mask_N)


def search_others(
    queries_QD: NDArray[np.float32],
    num_results: int,
    *,
    hidden: HiddenRows,
    searcher: Searcher,
    vectors_ND: NDArray[np.float32],
    for_each: bool,
    effort: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best items of each query that are not hidden.

    Args:
        queries_QD: Finite, the K of a request beside each other.
        num_results: How many each query wants, at least 1.
        hidden: What must not be found.
        searcher: Of the whole catalogue.
        vectors_ND: Item vectors.
        for_each: Whether each list matters, or the best over all lists of a request alone.
        effort: A multiple of the tuned setting.

    Returns:
        `scores_QS` best first and `rows_QS`, -1 at the end where the index found no further item.
    """
    room = min(hidden.num_rows, ROOM)
    scores_QS, rows_QS = searcher.search(queries_QD, num_results + room, for_each=for_each, effort=effort)
    is_hidden_QS = (rows_QS >= 0) & hidden.mask_N[rows_QS]
    if not is_hidden_QS.any():
        return scores_QS[:, :num_results], rows_QS[:, :num_results]
    crowded_Q = _crowded(rows_QS, is_hidden_QS, searcher.num_interests, room)
    # Stable: the others keep their order, and hidden ones go to the end, where they are no items any more.
    order_QS = np.argsort(is_hidden_QS, axis=1, kind="stable")[:, :num_results]
    scores_QS = np.take_along_axis(scores_QS, order_QS, axis=1)
    rows_QS = np.take_along_axis(np.where(is_hidden_QS, -1, rows_QS), order_QS, axis=1)
    if crowded_Q.any():
        again_QD, others = queries_QD[crowded_Q], hidden.others
        scores, rows = (
            searcher.search(again_QD, num_results, for_each=for_each, effort=effort, selector=others.selector)
            if others.few_rows_S is None
            else exact_search(again_QD[:, None], vectors_ND, num_results, among_rows=others.few_rows_S)
        )
        scores_QS[crowded_Q], rows_QS[crowded_Q] = -np.inf, -1
        scores_QS[crowded_Q, : scores.shape[1]], rows_QS[crowded_Q, : rows.shape[1]] = scores, rows
    return scores_QS, rows_QS


def _crowded(
    rows_QS: NDArray[np.int64], is_hidden_QS: NDArray[np.bool_], num_interests: int, room: int
) -> NDArray[np.bool_]:
    """Queries of requests that found more hidden rows than there was room for, [Q]."""
    crowded_Q = np.zeros(len(rows_QS), np.bool_)
    for start in range(0, len(rows_QS), num_interests):
        own = slice(start, start + num_interests)
        is_hidden_KS = is_hidden_QS[own]
        if np.count_nonzero(is_hidden_KS) > room:
            crowded_Q[own] = len(np.unique(rows_QS[own][is_hidden_KS])) > room
    return crowded_Q
