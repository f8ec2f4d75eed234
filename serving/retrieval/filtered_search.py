"""How a request's search differs from the usual one, and the search itself: filters, and other effort.

Requests of one kind share a call of the index, as usual ones do. What passes a filter is scored one by one
where it is little, and searched with a selector where it is much. An index is tuned for searches of the whole
catalogue: the best of those that pass lie deeper than the best of all, so that it has to look harder.

Legend: Q queries (requests x interests), D embedding, S results per query, N items.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.bundle.exact_search import exact_search
from re4.serving.retrieval.filter_cache import Selections
from re4.serving.retrieval.filters import Condition, Selection
from re4.serving.retrieval.hidden_items import search_others
from re4.serving.retrieval.search import Searcher

_DILUTION: Final = 0.25
"""Where one item in n passes, a search looks n to this power times as hard. Measured at N = 10^6 on an IVF
index tuned to recall 0.95: of the best among 10,000 to 400,000 items that pass, the tuned setting finds 0.85
to 0.98, this one 0.95 to 0.99 in 1.5 to 4 times the time of a search without a filter."""


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """What makes a search another kind of search. Hashable: those with equal terms share a call."""

    conditions: tuple[Condition, ...] = ()
    """All of them must pass; none for the whole catalogue."""
    effort: float = 1.0
    """Multiple of the tuned setting of an approximate index."""


class Found(NamedTuple):
    """What each query of a search found."""

    scores_QS: NDArray[np.float32]
    """Best first."""
    rows_QS: NDArray[np.int64]
    """-1 where an interest found no further item."""
    selection: Selection | None
    """What could be found; None for everything."""


def search_on_terms(
    terms: SearchTerms,
    queries_QD: NDArray[np.float32],
    num_results: int,
    *,
    searcher: Searcher,
    selections: Selections,
    vectors_ND: NDArray[np.float32],
    for_each: bool = True,
) -> Found:
    """Search for requests of the same terms.

    Args:
        terms: Of all of the requests.
        queries_QD: Their interests, finite.
        num_results: How many each interest wants; fewer come where fewer can be found.
        searcher: Of the whole catalogue.
        selections: Of the version.
        vectors_ND: Item vectors.
        for_each: Whether each interest's list matters, or the best over all lists of a request alone.
    """
    if not terms.conditions and selections.hidden is not None:
        others = search_others(
            queries_QD,
            num_results,
            hidden=selections.hidden,
            searcher=searcher,
            vectors_ND=vectors_ND,
            for_each=for_each,
            effort=terms.effort,
        )
        return Found(*others, selections.hidden.others)
    if not terms.conditions:
        return Found(*searcher.search(queries_QD, num_results, for_each=for_each, effort=terms.effort), None)
    selection = selections.of(terms.conditions)
    if selection.few_rows_S is not None:
        few = exact_search(queries_QD[:, None], vectors_ND, num_results, among_rows=selection.few_rows_S)
        return Found(*few, selection)
    effort = terms.effort * (len(vectors_ND) / selection.num_rows) ** _DILUTION
    many = searcher.search(
        queries_QD, num_results, for_each=for_each, effort=effort, selector=selection.selector
    )
    return Found(*many, selection)
