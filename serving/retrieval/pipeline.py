"""The pipeline from queries to results: gather item vectors, encode, search, merge.

A batch of queries shares one run of the encoder, and one call of the index for queries with equal
options.

Legend: B batch, L history length, K interests, D embedding, N items, M candidates, S results per
interest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter_ns
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.common.errors import BundleMismatchError, IndexUnavailableError, Re4Error, TooLateError
from re4.serving.retrieval.devices.backend import SupportsEncode
from re4.serving.retrieval.filter_cache import FilterCache
from re4.serving.retrieval.filtered_search import SearchOptions, search_with_options
from re4.serving.retrieval.filters import AllowedItems
from re4.serving.retrieval.indexes.remote_vectors import ItemVectors
from re4.serving.retrieval.merging import MAX_SCORE, MergedList, MergePolicy, SearchResults
from re4.serving.retrieval.merging.policy import NO_ROWS
from re4.serving.retrieval.search import Searcher

_DEFAULT_OPTIONS: Final = SearchOptions()
_BestItems: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""Rows, scores and interests of each request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A checked request in rows of the catalogue."""

    history_rows_L: NDArray[np.int64]
    """Rows of the history's known items, newest first: 1 to `max_history_length` of them."""
    num_candidates: int
    """0 for the interests alone."""
    excluded_rows: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """Rows that must not be among the candidates, ascending and unique."""
    options: SearchOptions | None = None
    """None for a search of the whole catalogue at the tuned setting."""
    merge_policy: MergePolicy = MAX_SCORE

    @property
    def search_depth(self) -> int:
        """How many results each interest must find for the best candidates; 0 for none."""
        return self.merge_policy.search_depth(self.num_candidates, len(self.excluded_rows))


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """The time that each stage of a batch took, in microseconds."""

    gather_us: int
    encode_us: int
    search_us: int
    merge_us: int
    batch_size: int
    num_exact_searches: int
    """Queries for which the index found too few eligible items, so that the whole catalogue was
    scored."""

    def plus(self, other: "StageTimes") -> "StageTimes":
        """Return the times of this batch and a second search for queries of it."""
        return StageTimes(
            gather_us=self.gather_us + other.gather_us,
            encode_us=self.encode_us + other.encode_us,
            search_us=self.search_us + other.search_us,
            merge_us=self.merge_us + other.merge_us,
            batch_size=self.batch_size,
            num_exact_searches=self.num_exact_searches + other.num_exact_searches,
        )


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """One query's interests and candidates."""

    query: Query
    interests_KD: NDArray[np.float32]
    attention_KL: NDArray[np.float32]
    """Over the query's history, newest first; every row sums to 1."""
    merged: MergedList
    times: StageTimes
    """Of the whole batch."""


class Pipeline:
    """The pipeline of one loaded version. `run` may be called by one thread at a time."""

    def __init__(
        self,
        *,
        vectors_ND: ItemVectors,
        encoder: SupportsEncode,
        searcher: Searcher,
        filter_cache: FilterCache,
        max_history_length: int,
    ) -> None:
        self._live = filter_cache.live
        self._vectors_ND = vectors_ND
        self._encoder = encoder
        self._searcher = searcher
        self._filter_cache = filter_cache
        self._max_history_length = max_history_length

    def with_filter_cache(self, filter_cache: FilterCache) -> "Pipeline":
        """Return the same pipeline with another filter cache, thus with other hidden and live items."""
        return Pipeline(
            vectors_ND=self._vectors_ND,
            encoder=self._encoder,
            searcher=self._searcher,
            filter_cache=filter_cache,
            max_history_length=self._max_history_length,
        )

    @property
    def index_failure(self) -> str:
        """Why the index cannot be searched; empty where it can."""
        return self._searcher.failure

    def run(self, queries: Sequence[Query]) -> list[QueryResult | Re4Error]:
        """Return the results of a batch.

        Args:
            queries: 1 to `max_batch_size` of them. They may differ in everything.

        Returns:
            One result for each query, in order; an error in place of a result that would be
            garbage.
        """
        began = perf_counter_ns()
        try:
            history_BLD, lengths_B = self._gather(queries)
        except (IndexUnavailableError, TooLateError) as error:
            return [error] * len(queries)
        gathered = perf_counter_ns()
        interests_BKD, attention_BKL = self._encoder.encode(history_BLD, lengths_B)
        infinite = _infinite_places(interests_BKD)
        encoded = perf_counter_ns()
        searched_places = [
            i for i, query in enumerate(queries) if query.num_candidates > 0 and i not in infinite
        ]
        results = self._search(queries, searched_places, interests_BKD)
        searched = perf_counter_ns()
        merged = [MergedList()] * len(queries)
        num_exact_searches = 0
        failures: dict[int, Re4Error] = {}
        for place in searched_places:
            query, found = queries[place], results[place]
            if isinstance(found, Re4Error):
                failures[place] = found
                continue
            merged[place] = _merge(query, found, attention_BKL[place])
            num_merged = len(merged[place].rows_M)
            if num_merged < query.num_candidates and num_merged < self._num_eligible(query, found.allowed):
                try:
                    exact = self._search_exactly(query, found.allowed, interests_BKD[place])
                except (IndexUnavailableError, TooLateError) as error:
                    failures[place] = error
                    continue
                merged[place] = _merge(query, exact, attention_BKL[place])
                num_exact_searches += 1
        times = StageTimes(
            gather_us=(gathered - began) // 1000,
            encode_us=(encoded - gathered) // 1000,
            search_us=(searched - encoded) // 1000,
            merge_us=(perf_counter_ns() - searched) // 1000,
            batch_size=len(queries),
            num_exact_searches=num_exact_searches,
        )
        for place in infinite:
            failures[place] = BundleMismatchError(
                "the live version's encoder answers this history with values not finite"
            )
        return [
            failures[place]
            if place in failures
            else QueryResult(
                query=query,
                interests_KD=interests_BKD[place],
                attention_KL=attention_BKL[place, :, : len(query.history_rows_L)],
                merged=merged[place],
                times=times,
            )
            for place, query in enumerate(queries)
        ]

    def _gather(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows_BL = np.zeros((len(queries), self._max_history_length), np.int64)
        lengths_B = np.empty(len(queries), np.int64)
        for place, query in enumerate(queries):
            length = len(query.history_rows_L)
            rows_BL[place, :length] = query.history_rows_L
            lengths_B[place] = length
        if self._live is None:
            return self._vectors_ND.take(rows_BL, axis=0), lengths_B
        if rows_BL.max() < len(self._vectors_ND):
            return self._vectors_ND.take(rows_BL, axis=0), lengths_B
        of_version_BL = np.where(rows_BL < len(self._vectors_ND), rows_BL, 0)
        history_BLD = self._vectors_ND.take(of_version_BL, axis=0)
        self._live.replace_vectors(history_BLD, rows_BL)
        return history_BLD, lengths_B

    def _search(
        self, queries: Sequence[Query], places: Sequence[int], interests_BKD: NDArray[np.float32]
    ) -> dict[int, SearchResults | Re4Error]:
        """Search for the queries at some places; equal options share a call of the index."""
        groups: dict[tuple[SearchOptions | None, bool, float | None], list[int]] = {}
        for place in places:
            query = queries[place]
            policy = query.merge_policy
            groups.setdefault((query.options, policy.needs_each_list, policy.balance), []).append(place)
        results: dict[int, SearchResults | Re4Error] = {}
        for key, group in groups.items():
            try:
                results |= self._search_group(queries, group, interests_BKD, *key)
            except (IndexUnavailableError, TooLateError) as error:
                results |= dict.fromkeys(group, error)
        return results

    def _search_group(
        self,
        queries: Sequence[Query],
        group: Sequence[int],
        interests_BKD: NDArray[np.float32],
        options: SearchOptions | None,
        needs_each_list: bool,
        balance: float | None,
    ) -> dict[int, SearchResults]:
        """Search for queries with equal options.

        Raises:
            IndexUnavailableError, TooLateError: the index is on another machine, and does not answer in time.
        """
        results: dict[int, SearchResults] = {}
        depths = [queries[place].search_depth for place in group]
        interests_GKD = interests_BKD if len(group) == len(interests_BKD) else interests_BKD[group]
        num_interests, embedding_dim = interests_GKD.shape[1:]
        queries_QD = interests_GKD.reshape(-1, embedding_dim)
        allowed = None
        hidden = self._filter_cache.hidden
        if options is None and not needs_each_list and (hidden is None or self._searcher.list_scan):
            best = self._search_best(queries_QD, max(depths))
            if best is not None:
                if hidden is not None:
                    allowed = hidden.visible
                found, of_version = best
                for number, (place, *columns) in enumerate(zip(group, *found, strict=True)):
                    own_list = MergedList(*columns)
                    if number in of_version and _is_short(of_version[number], queries[place]):
                        # Live items would take the places of better items that the search missed. As it
                        # is, the list is too short, so that everything is scored.
                        own_list = of_version[number]
                    results[place] = SearchResults(best=own_list, allowed=allowed)
                return results
        if options is not None or hidden is not None:
            scores_QS, rows_QS, allowed = search_with_options(
                options or _DEFAULT_OPTIONS,
                queries_QD,
                max(depths),
                searcher=self._searcher,
                filter_cache=self._filter_cache,
                num_items=len(self._vectors_ND),
                needs_each_list=needs_each_list,
                balance=balance,
            )
        else:
            scores_QS, rows_QS = self._searcher.search(
                queries_QD, max(depths), needs_each_list=needs_each_list, balance=balance
            )
        if self._live is not None:
            scores_QS, rows_QS = self._live.merge_lists(
                scores_QS,
                rows_QS,
                queries_QD,
                max(depths),
                allowed=allowed,
            )
        for number, (place, depth) in enumerate(zip(group, depths, strict=True)):
            own = slice(number * num_interests, (number + 1) * num_interests)
            results[place] = SearchResults(scores_QS[own, :depth], rows_QS[own, :depth], allowed=allowed)
        return results

    def _search_best(
        self, queries_QD: NDArray[np.float32], depth: int
    ) -> tuple[_BestItems, dict[int, MergedList]] | None:
        """Return the best visible items of each request by maximum score; None where the index is exact.

        The second value has the lists that were not full before live items were compared, by request.
        """
        hidden, live = self._filter_cache.hidden, self._live
        is_hidden_N = None if hidden is None else hidden.mask_N
        more = None if live is None or self._searcher.list_scan is None else live.indexed_items
        best = self._searcher.search_best(queries_QD, depth, is_hidden_N=is_hidden_N, more=more)
        if best is None:
            return None
        if live is None:
            return best, {}
        rows_BM = best[0]
        is_short_B = rows_BM[:, -1] < 0 if rows_BM.shape[1] >= depth else np.ones(len(rows_BM), np.bool_)
        of_version = {
            request: MergedList(*(column[request].copy() for column in best))
            for request in np.flatnonzero(is_short_B).tolist()
        }
        return live.merge_best(*best, queries_QD, depth, is_index_searched=more is not None), of_version

    def _search_exactly(
        self, query: Query, allowed: AllowedItems | None, interests_KD: NDArray[np.float32]
    ) -> SearchResults:
        """Score all items that may be candidates of a query."""
        hidden = self._filter_cache.hidden
        found = self._searcher.search_all(
            interests_KD,
            query.search_depth,
            allowed,
            () if query.options is None else query.options.conditions,
            0 if hidden is None else hidden.num_rows,
        )
        if self._live is not None:
            found = self._live.merge_lists(
                *found,
                interests_KD,
                query.search_depth,
                allowed=allowed,
                is_exact=True,
            )
        return SearchResults(*found)

    def _num_eligible(self, query: Query, allowed: AllowedItems | None) -> int:
        """Return how many items may be candidates of a query."""
        if allowed is None and self._live is not None:
            num_items = len(self._vectors_ND) + self._live.num_visible
            return num_items - self._live.num_visible_among(query.excluded_rows)
        if allowed is None:
            return len(self._vectors_ND) - len(query.excluded_rows)
        return allowed.num_rows - int(np.count_nonzero(allowed.contains(query.excluded_rows)))


def _infinite_places(interests_BKD: NDArray[np.float32]) -> list[int]:
    """Return the places of the queries whose interests are not finite."""
    if isfinite(np.add.reduce(interests_BKD, axis=None)):  # one step in place of several
        return []
    return np.flatnonzero(~np.isfinite(interests_BKD).all(axis=(1, 2))).tolist()


def _is_short(found: MergedList, query: Query) -> bool:
    """Return whether a list has fewer candidates than a query wants."""
    num_usable = np.count_nonzero((found.rows_M >= 0) & ~np.isin(found.rows_M, query.excluded_rows))
    return bool(num_usable < query.num_candidates)


def _merge(query: Query, results: SearchResults, attention_KL: NDArray[np.float32]) -> MergedList:
    return query.merge_policy.merge(
        results, query.excluded_rows, query.num_candidates, attention_KL[:, : len(query.history_rows_L)]
    )
