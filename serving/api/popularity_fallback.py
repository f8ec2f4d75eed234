"""The popularity fallback: the most popular items, where no item of the history is known."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.filters import AllowedItems
from re4.serving.retrieval.merging import MergedList
from re4.serving.retrieval.merging.policy import NO_ROWS
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.snapshot import Snapshot

_CHUNK_ROWS: Final = 1 << 16


def popular_items(query: Query, snapshot: Snapshot, recent_rows: NDArray[np.int64] = NO_ROWS) -> MergedList:
    """Return the most popular items that a query allows, most popular first, with scores of 0.

    A version lists its most popular items only. Where too few of those are allowed, others follow
    in catalogue order.

    Args:
        query: The query.
        snapshot: The version.
        recent_rows: Popular items of the last hours, most popular first, each once. They come before
            those of the version.
    """
    conditions = query.options.conditions if query.options is not None else ()
    hidden = snapshot.filter_cache.hidden
    allowed = None if hidden is None else hidden.visible
    if conditions:
        allowed = snapshot.filter_cache.allowed_by(conditions)

    def allowed_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = rows[~np.isin(rows, query.excluded_rows)]
        return rows if allowed is None else rows[allowed.contains(rows)]

    popular_rows: NDArray[np.int64] = np.asarray(snapshot.popular_rows)
    if snapshot.live is not None:
        recent_rows = snapshot.live.without_hidden(recent_rows)
    if len(recent_rows):
        popular_rows = np.concatenate([recent_rows, popular_rows[~np.isin(popular_rows, recent_rows)]])
    found = allowed_of(popular_rows)[: query.num_candidates]
    for rows in _chunks(allowed, snapshot):
        if len(found) == query.num_candidates:
            break
        others = allowed_of(rows[~np.isin(rows, found)])
        found = np.concatenate([found, others[: query.num_candidates - len(found)]])
    return MergedList(found, np.zeros(len(found), np.float32), np.zeros(len(found), np.int64))


def _chunks(allowed: AllowedItems | None, snapshot: Snapshot) -> Iterator[NDArray[np.int64]]:
    """Yield all rows that may be allowed, in chunks."""
    if allowed is not None and allowed.few_rows_S is not None:
        yield allowed.few_rows_S
        return
    num_items = snapshot.manifest.items.num_items
    for start in range(0, num_items, _CHUNK_ROWS):
        yield np.arange(start, min(start + _CHUNK_ROWS, num_items))
    if snapshot.live is not None:
        yield snapshot.live.visible_rows()
