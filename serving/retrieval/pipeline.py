"""From checked queries to candidates, in this process: gather, encode, search, merge.

A batch shares one run of the encoder and one search. Knows nothing about gRPC, ids or other versions.

Legend: B batch, L history length, K interests, D embedding, N items, M candidates, S results per interest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.bundle.exact_search import exact_search
from re4.common.errors import BundleMismatchError, Re4Error
from re4.serving.retrieval.devices.placement import Encodes
from re4.serving.retrieval.filter_cache import Selections
from re4.serving.retrieval.filtered_search import SearchTerms, search_on_terms
from re4.serving.retrieval.filters import Selection
from re4.serving.retrieval.merging import Merged, MergePolicy
from re4.serving.retrieval.merging.category_diversity import CategoryDiversity
from re4.serving.retrieval.merging.max_score import merge_max_score
from re4.serving.retrieval.search import Searcher

NO_ROWS: Final = np.empty(0, np.int64)
_USUAL: Final = SearchTerms()
NO_SCORES: Final = np.empty(0, np.float32)
NOTHING_MERGED: Final = Merged(NO_ROWS, NO_SCORES, NO_ROWS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One user's question, checked: rows instead of ids."""

    history_rows_L: NDArray[np.int64]
    """Rows of the history's known items, newest first: 1 to `max_history_length` of them."""
    num_candidates: int
    """How many candidates; 0 for the interests alone."""
    excluded_rows: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """Rows that must not be among the candidates, ascending and unique."""
    terms: SearchTerms | None = None
    """How the search differs; None for the usual one, of the whole catalogue at the tuned setting."""
    merge: MergePolicy | None = None
    """How the interests' lists become one; None for the pipeline's default."""
    pool_factor: int = 1
    """How many times as many items as candidates that policy chooses among."""

    @property
    def search_depth(self) -> int:
        """How many results each interest must find for the best candidates to be among them; 0 for none."""
        return self.num_candidates and self.num_candidates * self.pool_factor + len(self.excluded_rows)


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Where a batch's time went, in microseconds."""

    gather_us: int
    encode_us: int
    search_us: int
    merge_us: int
    batch_size: int
    num_exact_searches: int
    """Queries for which the index found too few eligible items, so that the whole catalogue was scored."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One user's interests and candidates."""

    interests_KD: NDArray[np.float32]
    attention_KL: NDArray[np.float32]
    """Over the query's history, newest first; every row sums to 1."""
    merged: Merged
    times: StageTimes
    """Of the whole batch."""


class _Found(NamedTuple):
    """What the search of one query found: a list for each interest, or the best over all of them."""

    scores_KS: NDArray[np.float32] = NO_SCORES
    rows_KS: NDArray[np.int64] = NO_ROWS
    best: Merged | None = None
    """By maximum score, with what is excluded still among it and row -1 where there is no more."""
    selection: Selection | None = None
    """What could be found; None for everything."""


class Pipeline:
    """The online path of one loaded version. `run` may be called by one thread at a time."""

    def __init__(
        self,
        *,
        vectors_ND: NDArray[np.float32],
        encoder: Encodes,
        searcher: Searcher,
        selections: Selections,
        merge: MergePolicy,
        max_history_length: int,
    ) -> None:
        self._vectors_ND = vectors_ND
        self._encoder = encoder
        self._searcher = searcher
        self._selections = selections
        self._merge = merge
        self._max_history_length = max_history_length

    def with_selections(self, selections: Selections) -> "Pipeline":
        """The same pipeline over other selections: with other items hidden. Shares everything else."""
        return Pipeline(
            vectors_ND=self._vectors_ND,
            encoder=self._encoder,
            searcher=self._searcher,
            selections=selections,
            merge=self._merge,
            max_history_length=self._max_history_length,
        )

    def run(self, queries: Sequence[Query]) -> list[Answer | Re4Error]:
        """Answer a batch.

        Args:
            queries: 1 to `max_batch_size` of them; what one asks for changes nothing for the others.

        Returns:
            An answer for each, in order; an error in place of an answer that would be garbage.
        """
        began = perf_counter_ns()
        history_BLD, lengths_B = self._gather(queries)
        gathered = perf_counter_ns()
        interests_BKD, attention_BKL = self._encoder.encode(history_BLD, lengths_B)
        finite_B = np.all(np.isfinite(interests_BKD), axis=(1, 2))
        encoded = perf_counter_ns()
        searching = [i for i, query in enumerate(queries) if query.num_candidates > 0 and finite_B[i]]
        found = self._search(queries, searching, interests_BKD)
        searched = perf_counter_ns()
        merged = [NOTHING_MERGED] * len(queries)
        num_exact_searches = 0
        for place, (scores_KS, rows_KS, best, selection) in zip(searching, found, strict=True):
            query = queries[place]
            if best is not None:
                merged[place] = first_allowed(best, query)
            else:
                merged[place] = self._merge_lists(query, scores_KS, rows_KS, attention_BKL[place])
            if len(merged[place].rows_M) < min(query.num_candidates, self._num_eligible(query, selection)):
                exact = exact_search(
                    interests_BKD[place][:, None],
                    self._vectors_ND,
                    query.search_depth,
                    among_rows=None if selection is None else selection.rows(),
                )
                merged[place] = self._merge_lists(query, *exact, attention_BKL[place])
                num_exact_searches += 1
        times = StageTimes(
            gather_us=(gathered - began) // 1000,
            encode_us=(encoded - gathered) // 1000,
            search_us=(searched - encoded) // 1000,
            merge_us=(perf_counter_ns() - searched) // 1000,
            batch_size=len(queries),
            num_exact_searches=num_exact_searches,
        )
        return [
            Answer(
                interests_KD=interests_BKD[place],
                attention_KL=attention_BKL[place, :, : len(query.history_rows_L)],
                merged=merged[place],
                times=times,
            )
            if finite_B[place]
            else BundleMismatchError("the live version's encoder answers this history with values not finite")
            for place, query in enumerate(queries)
        ]

    def _gather(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows_BL = np.zeros((len(queries), self._max_history_length), np.int64)
        lengths_B = np.empty(len(queries), np.int64)
        for place, query in enumerate(queries):
            length = len(query.history_rows_L)
            rows_BL[place, :length] = query.history_rows_L
            lengths_B[place] = length
        return self._vectors_ND.take(rows_BL, axis=0), lengths_B

    def _merge_lists(
        self,
        query: Query,
        scores_KS: NDArray[np.float32],
        rows_KS: NDArray[np.int64],
        attention_KL: NDArray[np.float32],
    ) -> Merged:
        depth = query.search_depth
        return (query.merge or self._merge)(
            scores_KS[:, :depth],
            rows_KS[:, :depth],
            query.excluded_rows,
            query.num_candidates,
            attention_KL[:, : len(query.history_rows_L)],
        )

    def _search(
        self, queries: Sequence[Query], searching: Sequence[int], interests_BKD: NDArray[np.float32]
    ) -> list[_Found]:
        """What the searches of the queries at the given places found; those of equal terms share a call."""
        alike: dict[tuple[SearchTerms | None, bool], list[int]] = {}
        for place in searching:
            query = queries[place]
            merge = query.merge or self._merge
            for_each = merge is not merge_max_score and not isinstance(merge, CategoryDiversity)
            alike.setdefault((query.terms, for_each), []).append(place)
        found = {}
        for (terms, for_each), places in alike.items():
            num_results = max(queries[place].search_depth for place in places)
            wanted_BKD = interests_BKD[places]
            num_interests, embedding_dim = wanted_BKD.shape[1:]
            queries_QD = wanted_BKD.reshape(-1, embedding_dim)
            selection = None
            is_usual = terms is None and self._selections.hidden is None
            if is_usual and all((queries[place].merge or self._merge) is merge_max_score for place in places):
                best = self._searcher.best(queries_QD, num_results)
                if best is not None:
                    for place, *of_request in zip(places, *best, strict=True):
                        found[place] = _Found(best=Merged(*of_request))
                    continue
            if is_usual:
                scores_QS, rows_QS = self._searcher.search(queries_QD, num_results, for_each=for_each)
            else:
                scores_QS, rows_QS, selection = search_on_terms(
                    terms or _USUAL,
                    queries_QD,
                    num_results,
                    searcher=self._searcher,
                    selections=self._selections,
                    vectors_ND=self._vectors_ND,
                    for_each=for_each,
                )
            for number, place in enumerate(places):
                own = slice(number * num_interests, (number + 1) * num_interests)
                found[place] = _Found(scores_QS[own], rows_QS[own], selection=selection)
        return [found[place] for place in searching]

    def _num_eligible(self, query: Query, selection: Selection | None) -> int:
        """How many items the query allows."""
        if selection is None:
            return len(self._vectors_ND) - len(query.excluded_rows)
        return selection.num_rows - int(np.count_nonzero(selection.hold(query.excluded_rows)))


def first_allowed(best: Merged, query: Query) -> Merged:
    """The candidates of a query among its best items: the first that are not excluded."""
    rows, scores, numbers = best
    excluded_rows = query.excluded_rows
    if excluded_rows.size:
        is_allowed = excluded_rows.take(excluded_rows.searchsorted(rows), mode="clip") != rows
        rows, scores, numbers = rows[is_allowed], scores[is_allowed], numbers[is_allowed]
    if (rows[: query.num_candidates] < 0).any():
        is_there = rows >= 0
        rows, scores, numbers = rows[is_there], scores[is_there], numbers[is_there]
    num = query.num_candidates
    return Merged(rows[:num], scores[:num], numbers[:num])
