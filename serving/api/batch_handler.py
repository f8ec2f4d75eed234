"""The batch handler: from a batch of checked requests to results, in the worker thread.

It looks up ids, runs the pipeline and encodes the candidates, each once for the whole batch. Work
for single calls is left to the event loop. All requests of a batch are answered by one version.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.layout import IS_COLD
from re4.common.errors import NoUsableHistoryError, Re4Error
from re4.serving.api.candidate_encoding import encode_candidates
from re4.serving.api.popularity_fallback import popular_items
from re4.serving.api.validation import CheckedRequest, with_condition
from re4.serving.batching.queue import BatchGroup
from re4.serving.histories.popularity import RecentPopularity
from re4.serving.retrieval.filters import Condition
from re4.serving.retrieval.merging import MAX_SCORE, MergedList
from re4.serving.retrieval.merging.new_items import join_new_items
from re4.serving.retrieval.merging.policy import NO_ROWS
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.settings import Fallback
from re4.serving.versions.snapshot import Snapshot

RowsOf: TypeAlias = Callable[[list[Any]], NDArray[np.int64]]
"""Returns the rows of ids, -1 where the id is unknown."""

_FULL_BATCH_DEPTH_BITS: Final = 9
"""Searches for up to 2^9 results share batches of full size. Deeper ones are batched separately, in
smaller batches."""

_FILTER_COST: Final = 4
"""Relative cost of a search with a filter: it may need its own call of the index, and a new
bitmap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestResult:
    """The result of a checked request."""

    query_result: QueryResult | None
    """None where no item of the history is known, and the candidates are the most popular items."""
    num_unknown_history_ids: int
    candidates: bytes
    """As `encode_candidates` returns them."""
    num_candidates: int
    is_new_M: NDArray[np.bool_] | None = None
    """Which candidates are new items; None for a request without an exploration quota."""


def batch_group(request: CheckedRequest) -> BatchGroup:
    """Return which requests may share a batch with this one, and the cost of its search.

    Costs are powers of two, so that there are few groups.
    """
    search_depth, options = request.search_depth, request.options
    depth_bits = (search_depth - 1).bit_length() if search_depth else 0
    cost, kind = 1 << max(0, depth_bits - _FULL_BATCH_DEPTH_BITS), ""
    if options is not None:
        cost <<= max(0, math.ceil(math.log2(options.effort)))
        kind = "effort" if options.effort > 1 else ""  # a lower effort delays no other request
        if options.conditions:
            cost, kind = cost * _FILTER_COST, "filtered"
    return BatchGroup(
        version=id(request.snapshot),
        relative_cost=cost,
        kind=kind,
        is_remote=request.snapshot.is_index_remote,
    )


class FoundBatch(NamedTuple):
    """The candidates of a batch in rows of the catalogue. Every list has an entry for each request."""

    results: list[QueryResult | Re4Error | None]
    """None where no item of the history is known, and the candidates are the most popular items."""
    nums_unknown_history_ids: list[int]
    merged: list[MergedList]
    """The candidates; none in place of an error."""
    is_new_M: dict[int, NDArray[np.bool_]]
    """Which candidates are new items, by the place of the request; only where there are such."""


def answer_batch(
    requests: Sequence[CheckedRequest], fallback: Fallback, popularity: RecentPopularity | None = None
) -> list[RequestResult | Re4Error]:
    """Answer requests of one version.

    Args:
        requests: 1 to `max_batch_size` of them.
        fallback: The answer to requests of which no history item is known.
        popularity: Popular items of the last hours, before those of the version; None for none.

    Returns:
        A result for each request, in order; an error in place of one that has none.
    """
    found = find_candidates(requests, fallback, popularity=popularity)
    encoded = encode_candidates(found.merged, requests[0].snapshot.item_ids)
    return [
        result
        if isinstance(result, Re4Error)
        else RequestResult(
            query_result=result,
            num_unknown_history_ids=num_unknown,
            candidates=candidates,
            num_candidates=len(own.rows_M),
            is_new_M=found.is_new_M.get(place, np.zeros(len(own.rows_M), np.bool_))
            if requests[place].num_new_items
            else None,
        )
        for place, (result, num_unknown, own, candidates) in enumerate(
            zip(found.results, found.nums_unknown_history_ids, found.merged, encoded, strict=True)
        )
    ]


def find_candidates(
    requests: Sequence[CheckedRequest],
    fallback: Fallback,
    rows_of: RowsOf | None = None,
    popularity: RecentPopularity | None = None,
) -> FoundBatch:
    """Return the candidates of some requests of one version, as `answer_batch` does, in rows.

    Args:
        requests: 1 to `max_batch_size` of them.
        fallback: The answer to requests of which no history item is known.
        rows_of: Looks up the ids of the requests; None for the ids of the version.
        popularity: As for `answer_batch`.
    """
    snapshot = requests[0].snapshot
    queries, nums_unknown = look_up_ids(requests, rows_of)
    known_places = [place for place, query in enumerate(queries) if query.history_rows_L.size]
    results: list[QueryResult | Re4Error | None] = [None] * len(requests)
    if known_places:
        found = snapshot.pipeline.run([queries[place] for place in known_places])
        for place, result in zip(known_places, found, strict=True):
            results[place] = result
    marks = _join_new_items(requests, queries, results)
    _bound_new_items(requests, queries, results)
    merged = []
    for place, query in enumerate(queries):
        if results[place] is None and (fallback is Fallback.NONE or not query.num_candidates):
            results[place] = _no_usable_history(nums_unknown[place], snapshot)
        merged.append(_candidates(results[place], query, snapshot, popularity))
    return FoundBatch(results, nums_unknown, merged, marks)


def _join_new_items(
    requests: Sequence[CheckedRequest],
    queries: Sequence[Query],
    results: list[QueryResult | Re4Error | None],
) -> dict[int, NDArray[np.bool_]]:
    """Search for the new items of requests with an exploration quota, and join them with their results.

    Returns:
        Which candidates are new items, by the request's place.
    """
    places = [
        place
        for place, request in enumerate(requests)
        if request.new_item_options is not None and isinstance(results[place], QueryResult)
    ]
    if not places:
        return {}
    found = requests[0].snapshot.pipeline.run(
        [
            replace(
                queries[place],
                num_candidates=requests[place].num_new_items,
                options=requests[place].new_item_options,
                merge_policy=MAX_SCORE,
            )
            for place in places
        ]
    )
    marks = {}
    for place, new in zip(places, found, strict=True):
        others = results[place]
        if isinstance(others, QueryResult) and isinstance(new, QueryResult):
            joined, marks[place] = join_new_items(
                others.merged,
                new.merged,
                queries[place].num_candidates,
                is_ordered_by_score=queries[place].merge_policy.is_ordered_by_score,
            )
            results[place] = replace(others, merged=joined, times=others.times.plus(new.times))
    return marks


def _bound_new_items(
    requests: Sequence[CheckedRequest],
    queries: Sequence[Query],
    results: list[QueryResult | Re4Error | None],
) -> None:
    """Replace surplus new items, the last ones of a list, by the best other items."""
    snapshot = requests[0].snapshot
    surplus: dict[int, MergedList] = {}
    for place, request in enumerate(requests):
        result = results[place]
        if request.max_new_items is not None and isinstance(result, QueryResult):
            is_new_M = snapshot.is_untrained(result.merged.rows_M)
            if np.count_nonzero(is_new_M) > request.max_new_items:
                surplus[place] = result.merged.at(is_new_M)
    if not surplus:
        return
    codes = tuple(snapshot.attributes[IS_COLD].value_codes(["true"]).tolist())
    is_old = Condition(IS_COLD, tuple(code for code in codes if code >= 0), True)
    found = snapshot.pipeline.run(
        [replace(queries[place], options=with_condition(queries[place].options, is_old)) for place in surplus]
    )
    for place, others in zip(surplus, found, strict=True):
        before, bound = results[place], requests[place].max_new_items
        if bound is not None and isinstance(before, QueryResult) and isinstance(others, QueryResult):
            num_new = max(bound, len(before.merged.rows_M) - len(others.merged.rows_M))
            joined, _ = join_new_items(
                others.merged,
                surplus[place].at(slice(num_new)),
                queries[place].num_candidates,
                is_ordered_by_score=queries[place].merge_policy.is_ordered_by_score,
            )
            results[place] = replace(before, merged=joined, times=before.times.plus(others.times))


def look_up_ids(
    requests: Sequence[CheckedRequest], rows_of: RowsOf | None = None
) -> tuple[list[Query], list[int]]:
    """Look up the ids of some requests of one version, all at once.

    Returns:
        A query for each request, with an empty history where none of the ids is known; and how many
        ids of its history are unknown.
    """
    snapshot = requests[0].snapshot
    ids: list[Any] = list(chain.from_iterable((*each.history_ids, *each.excluded_ids) for each in requests))
    rows = (rows_of or snapshot.item_ids.rows)(ids)
    are_all_known = not rows.size or rows.min() >= 0
    max_length = snapshot.manifest.model.max_history_length
    queries, nums_unknown, start = [], [], 0
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
            excluded_rows=_unique_known(excluded) if excluded.size else NO_ROWS,
            options=request.options,
            merge_policy=request.merge_policy,
        )
        queries.append(query)
        nums_unknown.append(len(history) - len(known))
    return queries, nums_unknown


def _unique_known(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows in ascending order, each once, without the -1 of unknown ids."""
    rows = np.sort(rows)
    is_first = np.empty(len(rows), np.bool_)
    is_first[0] = True
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    return rows[is_first & (rows >= 0)]


def _candidates(
    result: QueryResult | Re4Error | None,
    query: Query,
    snapshot: Snapshot,
    popularity: RecentPopularity | None,
) -> MergedList:
    if isinstance(result, QueryResult):
        return result.merged
    if isinstance(result, Re4Error):
        return MergedList()
    recent_rows = NO_ROWS if popularity is None else popularity.rows(snapshot.item_ids)
    return popular_items(query, snapshot, recent_rows)


def _no_usable_history(num_unknown: int, snapshot: Snapshot) -> NoUsableHistoryError:
    found = f"none of the {num_unknown} ids in history is" if num_unknown else "history is empty, no id"
    return NoUsableHistoryError(
        f"{found} known to version {snapshot.manifest.version}; give at least one id of its catalogue, or "
        "answer such users otherwise (a server started with --fallback popular gives the most popular items)"
    )
