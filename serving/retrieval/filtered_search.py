"""The search of requests with filters, another search effort, or hidden items.

Requests with equal options share a call of the index. The items that a filter allows are scored one
by one where they are few, and searched with a selector where they are many. An index is tuned for
searches of the whole catalogue. The best of the allowed items lie deeper than the best of all, so a
search with a selector needs more effort.

Legend: Q queries (requests x interests), D embedding, S results per query, N items.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.filter_cache import FilterCache
from re4.serving.retrieval.filters import AllowedItems, Condition
from re4.serving.retrieval.hidden_items import search_visible
from re4.serving.retrieval.search import Searcher

_EFFORT_EXPONENT: Final = 0.25
"""Where one item in n is allowed, the effort is n to this power times as high. Measured at N = 10^6
on an IVF index tuned to recall 0.95: of the best among 10,000 to 400,000 allowed items, the tuned
setting finds 0.85 to 0.98, this effort 0.95 to 0.99 in 1.5 to 4 times the time of a search without
a filter."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of a search. Hashable: equal ones share a call of the index."""

    conditions: tuple[Condition, ...] = ()
    """All must be met; none for the whole catalogue."""
    effort: float = 1.0
    """Multiple of the tuned setting of an approximate index."""


def search_with_options(
    options: SearchOptions,
    queries_QD: NDArray[np.float32],
    num_results: int,
    *,
    searcher: Searcher,
    filter_cache: FilterCache,
    num_items: int,
    needs_each_list: bool = True,
    balance: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], AllowedItems | None]:
    """Search for requests with equal options.

    Args:
        options: Of all of the requests.
        queries_QD: Their interests, finite.
        num_results: How many results each interest wants; fewer are returned where fewer can be
            found.
        searcher: Of the whole catalogue.
        filter_cache: Of the version.
        num_items: N.
        needs_each_list: As for `Searcher.search`.
        balance: Likewise.

    Returns:
        `scores_QS` best first, `rows_QS`, -1 where an interest found no further item, and the items
        among which was searched, live ones included; None for all. Live items are not searched.
    """
    hidden = filter_cache.hidden
    num_hidden = 0 if hidden is None else hidden.num_rows
    if options.conditions:
        allowed = filter_cache.allowed_by(options.conditions)
        if allowed.few_rows_S is not None:
            found = searcher.search_all(queries_QD, num_results, allowed, options.conditions, num_hidden)
            return *found, allowed
        effort = options.effort * (num_items / allowed.num_rows) ** _EFFORT_EXPONENT
        found = searcher.search(
            queries_QD,
            num_results,
            needs_each_list=needs_each_list,
            balance=balance,
            effort=effort,
            selector=searcher.selector_of(allowed, options.conditions, num_hidden),
        )
        return *found, allowed
    if hidden is not None:
        found = search_visible(
            queries_QD,
            num_results,
            hidden=hidden,
            searcher=searcher,
            needs_each_list=needs_each_list,
            balance=balance,
            effort=options.effort,
        )
        return *found, hidden.visible
    found = searcher.search(
        queries_QD, num_results, needs_each_list=needs_each_list, balance=balance, effort=options.effort
    )
    return *found, None
