"""The most popular items that a request allows: the answer where nothing of its history is known."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.filters import Selection
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import Snapshot

_ROWS_AT_ONCE: Final = 1 << 16


def popular_rows(query: Query, snapshot: Snapshot) -> NDArray[np.int64]:
    """Rows of the most popular items that the query allows, most popular first.

    A version lists its most popular items only; where too few of those are allowed, others follow, in
    catalogue order.
    """
    conditions = query.terms.conditions if query.terms is not None else ()
    hidden = snapshot.selections.hidden
    selection = None if hidden is None else hidden.others
    if conditions:
        selection = snapshot.selections.of(conditions)

    def allowed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = rows[~np.isin(rows, query.excluded_rows)]
        return rows if selection is None else rows[selection.hold(rows)]

    found = allowed(snapshot.popular_rows)[: query.num_candidates]
    for rows in _blocks(selection, snapshot.manifest.items.num_items):
        if len(found) == query.num_candidates:
            break
        others = allowed(rows[~np.isin(rows, found)])
        found = np.concatenate([found, others[: query.num_candidates - len(found)]])
    return found


def _blocks(selection: Selection | None, num_items: int) -> Iterator[NDArray[np.int64]]:
    """Rows that may be allowed, some at a time."""
    if selection is not None and selection.few_rows_S is not None:
        yield selection.few_rows_S
        return
    for start in range(0, num_items, _ROWS_AT_ONCE):
        yield np.arange(start, min(start + _ROWS_AT_ONCE, num_items))
