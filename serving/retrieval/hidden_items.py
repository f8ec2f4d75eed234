"""Hidden items: excluded from every answer, at little cost.

A selector would slow down every search because of a few rows. So a search goes a little deeper, and
hidden rows are removed from its results. Only where a request's results held more hidden rows than
that extra depth is the request searched again, among the visible items alone.

Legend: N items, Q queries (requests x interests), D embedding, S results per query.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.ids.id_map import ItemIds
from re4.serving.retrieval.filters import AllowedItems
from re4.serving.retrieval.search import Searcher

MAX_EXTRA_DEPTH: Final = 64
"""How much deeper a search goes at most. The results of a request rarely hold so many hidden
rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenItems:
    """The hidden items of one version. Immutable and thread-safe."""

    mask_N: NDArray[np.bool_]
    """Over the version's rows; with live items, over theirs too."""
    num_rows: int
    """Hidden rows of the version."""

    @classmethod
    def of(cls, hidden: HiddenIds, item_ids: ItemIds, num_items: int) -> "HiddenItems | None":
        """Return the hidden items that a version has; None where it has none of them."""
        rows = item_ids.rows(hidden.of_kind(item_ids.kind)) if hidden.ids else np.empty(0, np.int64)
        known = np.unique(rows[rows >= 0])
        if not known.size:
            return None
        mask_N = np.zeros(num_items, np.bool_)
        mask_N[known] = True
        return cls(mask_N=mask_N, num_rows=len(known))

    @cached_property
    def visible(self) -> AllowedItems:
        """All items that are not hidden."""
        return AllowedItems.of_mask(~self.mask_N)

    def remove_from(self, allowed: AllowedItems) -> AllowedItems:
        """Return the allowed items that are not hidden."""
        if allowed.few_rows_S is not None:
            return AllowedItems(rows_S=allowed.few_rows_S[~self.mask_N[allowed.few_rows_S]])
        mask_N = np.zeros(len(self.mask_N), np.bool_)
        mask_N[allowed.rows()] = True
        return AllowedItems.of_mask(mask_N & ~self.mask_N)


def search_visible(
    queries_QD: NDArray[np.float32],
    num_results: int,
    *,
    hidden: HiddenItems,
    searcher: Searcher,
    needs_each_list: bool,
    balance: float | None = None,
    effort: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best items of each query that are not hidden.

    Args:
        queries_QD: Finite, the K of a request beside each other.
        num_results: How many each query wants, at least 1.
        hidden: The items that must not be found.
        searcher: Of the whole catalogue.
        needs_each_list: As for `Searcher.search`.
        balance: Likewise.
        effort: A multiple of the tuned setting.

    Returns:
        `scores_QS` best first and `rows_QS`, -1 at the end where the index found no further item.
    """
    extra_depth = min(hidden.num_rows, MAX_EXTRA_DEPTH)
    scores_QS, rows_QS = searcher.search(
        queries_QD,
        num_results + extra_depth,
        needs_each_list=needs_each_list,
        balance=balance,
        effort=effort,
    )
    is_hidden_QS = (rows_QS >= 0) & hidden.mask_N[rows_QS]
    if not is_hidden_QS.any():
        return scores_QS[:, :num_results], rows_QS[:, :num_results]
    is_short_Q = _has_more_hidden_rows(rows_QS, is_hidden_QS, searcher.num_interests, extra_depth)
    # Stable: visible rows keep their order; hidden rows go to the end and become -1.
    order_QS = np.argsort(is_hidden_QS, axis=1, kind="stable")[:, :num_results]
    scores_QS = np.take_along_axis(scores_QS, order_QS, axis=1)
    rows_QS = np.take_along_axis(np.where(is_hidden_QS, -1, rows_QS), order_QS, axis=1)
    if is_short_Q.any():
        again_QD, visible = queries_QD[is_short_Q], hidden.visible
        scores, rows = (
            searcher.search(
                again_QD,
                num_results,
                needs_each_list=needs_each_list,
                balance=balance,
                effort=effort,
                selector=searcher.selector_of(visible, (), hidden.num_rows),
            )
            if visible.few_rows_S is None
            else searcher.search_all(again_QD, num_results, visible, (), hidden.num_rows)
        )
        scores_QS[is_short_Q], rows_QS[is_short_Q] = -np.inf, -1
        scores_QS[is_short_Q, : scores.shape[1]], rows_QS[is_short_Q, : rows.shape[1]] = scores, rows
    return scores_QS, rows_QS


def _has_more_hidden_rows(
    rows_QS: NDArray[np.int64], is_hidden_QS: NDArray[np.bool_], num_interests: int, extra_depth: int
) -> NDArray[np.bool_]:
    """Return the queries of requests that found more hidden rows than the extra depth, bool [Q]."""
    has_more_Q = np.zeros(len(rows_QS), np.bool_)
    for start in range(0, len(rows_QS), num_interests):
        own = slice(start, start + num_interests)
        is_hidden_KS = is_hidden_QS[own]
        if np.count_nonzero(is_hidden_KS) > extra_depth:
            has_more_Q[own] = len(np.unique(rows_QS[own][is_hidden_KS])) > extra_depth
    return has_more_Q
