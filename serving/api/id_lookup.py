"""Ids to rows, for a whole batch of requests in one look-up. Knows one version's ids; does no retrieval."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.serving.api.validation import CheckedRequest
from re4.serving.retrieval.pipeline import NO_ROWS, Query
from re4.serving.versions.snapshot import Snapshot


class LookedUp(NamedTuple):
    """A request in rows."""

    query: Query
    """With an empty history where none of the ids is known: not to be run."""
    num_unknown_history_ids: int


def look_up(requests: Sequence[CheckedRequest], snapshot: Snapshot) -> list[LookedUp]:
    """Find the rows of all ids of some requests that were checked against this version."""
    ids: list[Any] = list(chain.from_iterable((*each.history_ids, *each.excluded_ids) for each in requests))
    rows = snapshot.item_ids.rows(ids)
    are_all_known = not rows.size or rows.min() >= 0
    max_length = snapshot.manifest.model.max_history_length
    looked_up, start = [], 0
    for request in requests:
        middle = start + len(request.history_ids)
        history, excluded = rows[start:middle], rows[middle : middle + len(request.excluded_ids)]
        start = middle + len(excluded)
        known = history if are_all_known else history[history >= 0]
        if request.exclude_history:
            excluded = np.concatenate([excluded, known])
        query = Query(
            history_rows_L=known[::-1][:max_length],
            num_candidates=request.num_candidates,
            excluded_rows=_known_once(excluded) if excluded.size else NO_ROWS,
            terms=request.terms,
            merge=request.merge,
            pool_factor=request.pool_factor,
        )
        looked_up.append(LookedUp(query, len(history) - len(known)))
    return looked_up


def _known_once(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows in ascending order, each once, without the -1 of unknown ids."""
    rows = np.sort(rows)
    is_first = np.empty(len(rows), np.bool_)
    is_first[0] = True
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    return rows[is_first & (rows >= 0)]
