"""Exact top-k by inner product, without an index, and recall modulo ties.

Export, serving and the benchmarks judge answers by these functions, so that recall means one thing.

Legend: Q queries, K interests of a query, D embedding, N items, A items to choose from, S results of a
query, C items of a chunk, M rows of an answer.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.scoring.rescoring import best_first

TIE_TOLERANCE: Final = 1e-5
"""Relative. Scores this close to the last exact one are ties, which float32 sums in another order decide."""

_CHUNK_ITEMS: Final = 1 << 16
_MAX_CHUNK_PRODUCTS: Final = 1 << 24
"""Inner products held at once."""
_NUM_FIRST: Final = 1 << 12

ReadChunks: TypeAlias = Callable[[NDArray[np.float32], int], Iterator[tuple[int, NDArray[np.float32]]]]
"""Yields the first row of each chunk and its vectors, for an array and a number of rows a chunk."""


def _slices(vectors_ND: NDArray[np.float32], num_rows: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(vectors_ND), num_rows):
        yield start, vectors_ND[start : start + num_rows]


def exact_search(
    interests_QKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_results: int,
    *,
    among_rows: NDArray[np.int64] | None = None,
    excluded_rows: NDArray[np.int64] | None = None,
    sum_in_float64: bool = False,
    read_chunks: ReadChunks = _slices,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the items with the largest inner product with any of a query's interests.

    Vectors are read in chunks, smaller ones for more queries, so that memory depends on neither's number.

    Args:
        interests_QKD: Finite. For one list an interest, make each interest a query of its own (K = 1).
        vectors_ND: Finite; may be memory-mapped.
        num_results: Results wanted for each query.
        among_rows: Rows to choose from, [A], ascending and unique; None for all.
        excluded_rows: Rows that must not be found, where `among_rows` is None.
        sum_in_float64: Round each score to float32 once, so that equal item vectors score equally.
        read_chunks: How `vectors_ND` is read where `among_rows` is None.

    Returns:
        `scores_QS` and `rows_QS`: score descending, then row ascending, at the cut too. S is `num_results`,
        or the number of items to choose from where that is smaller.
    """
    num_queries, num_interests, dim = interests_QKD.shape
    dtype = np.float64 if sum_in_float64 else np.float32
    queries: NDArray[Any] = interests_QKD.reshape(num_queries * num_interests, dim).astype(dtype, copy=False)
    excluded = np.empty(0, np.int64) if excluded_rows is None else np.unique(excluded_rows)
    num_eligible = len(vectors_ND) - len(excluded) if among_rows is None else len(among_rows)
    shape = (num_queries, min(num_results, num_eligible))
    scores_QS, rows_QS = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
    if not rows_QS.size:
        return scores_QS, rows_QS
    chunk_size = max(1, min(_CHUNK_ITEMS, _MAX_CHUNK_PRODUCTS // len(queries)))
    for rows_C, vectors_CD in _chunks(vectors_ND, among_rows, chunk_size, read_chunks):
        products = queries @ vectors_CD.astype(dtype, copy=False).T
        if num_interests > 1:
            products = products.reshape(num_queries, num_interests, len(rows_C)).max(axis=1)
        scores_QC = products.astype(np.float32, copy=False)
        if excluded.size:
            first, stop = np.searchsorted(excluded, (rows_C[0], rows_C[-1] + 1))
            scores_QC[:, excluded[first:stop] - rows_C[0]] = -np.inf
        if rows_QS[0, 0] < 0:
            # Sorting is dear for many items, so that a few of them give a first threshold for the others.
            num_first = max(rows_QS.shape[1], _NUM_FIRST)
            order = best_first(scores_QC[:, :num_first], rows_QS.shape[1])
            scores_QS[:, : order.shape[1]] = np.take_along_axis(scores_QC, order, 1)
            rows_QS[:, : order.shape[1]] = rows_C[order]
            scores_QC, rows_C = scores_QC[:, num_first:], rows_C[num_first:]
        _keep_best(scores_QS, rows_QS, scores_QC, rows_C)
    return scores_QS, rows_QS


def _chunks(
    vectors_ND: NDArray[np.float32],
    among_rows: NDArray[np.int64] | None,
    chunk_size: int,
    read_chunks: ReadChunks,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield rows, ascending, and their vectors."""
    if among_rows is None:
        for start, chunk in read_chunks(vectors_ND, chunk_size):
            yield np.arange(start, start + len(chunk)), chunk
    else:
        for start in range(0, len(among_rows), chunk_size):
            rows_C = among_rows[start : start + chunk_size]
            yield rows_C, vectors_ND[rows_C]


def _keep_best(
    scores_QS: NDArray[np.float32],
    rows_QS: NDArray[np.int64],
    scores_QC: NDArray[np.float32],
    rows_C: NDArray[np.int64],
) -> None:
    """Put items of later rows that are better than the last result in their places."""
    num_results = scores_QS.shape[1]
    # A later row that ties with the last result stays out: equal scores are in the order of their rows.
    is_better_QC = scores_QC > scores_QS[:, -1:]
    for query in np.flatnonzero(is_better_QC.any(axis=1)):
        places = np.flatnonzero(is_better_QC[query])
        scores = scores_QC[query, places]
        if len(scores) > num_results:
            cut = np.partition(scores, len(scores) - num_results)[len(scores) - num_results]
            places, scores = places[scores >= cut], scores[scores >= cut]
        scores = np.concatenate([scores_QS[query], scores])
        rows = np.concatenate([rows_QS[query], rows_C[places]])
        # Rows ascend among equal scores and the sort is stable.
        order = np.argsort(-scores, kind="stable")[:num_results]
        scores_QS[query], rows_QS[query] = scores[order], rows[order]


def exact_thresholds(
    interests_QKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_candidates: int,
    *,
    read_chunks: ReadChunks = _slices,
) -> NDArray[np.float32]:
    """Return the score of each query's last exact candidate, [Q].

    Args:
        interests_QKD: Finite.
        vectors_ND: Finite, at least one; may be memory-mapped.
        num_candidates: At least 1; N where there are fewer items.
        read_chunks: How `vectors_ND` is read.
    """
    scores_QS, _ = exact_search(interests_QKD, vectors_ND, num_candidates, read_chunks=read_chunks)
    return scores_QS[:, -1]


def true_scores(
    interests_QKD: NDArray[np.float32], vectors_ND: NDArray[np.float32], rows_QM: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the best inner product with any interest, float32 [Q, M]; minus infinity where the row is -1."""
    scores_QM = np.empty(rows_QM.shape, np.float32)
    for scores_M, interests_KD, rows_M in zip(scores_QM, interests_QKD, rows_QM, strict=True):
        scores_M[:] = (vectors_ND[rows_M] @ interests_KD.T).max(axis=1)
    scores_QM[rows_QM < 0] = -np.inf
    return scores_QM


def reaches(scores: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where scores are those of exact candidates: as good as the last one's, or tied with it."""
    is_reached: NDArray[np.bool_] = scores >= thresholds - TIE_TOLERANCE * np.abs(thresholds)
    return is_reached


def merged_recall(
    interests_QKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    rows_QM: NDArray[np.int64],
    thresholds_Q: NDArray[np.float32],
) -> float:
    """Return the mean share of the exact candidates that merged lists hold, 0 to 1.

    An item counts as found where its true score reaches that of the last exact candidate. So ties cost
    nothing, and scores that an index computes from its codes have no influence.

    Args:
        interests_QKD: Of the requests.
        vectors_ND: All item vectors; may be memory-mapped.
        rows_QM: Candidates found, different ones, -1 where there is none.
        thresholds_Q: See `exact_thresholds`.
    """
    return float(reaches(true_scores(interests_QKD, vectors_ND, rows_QM), thresholds_Q[:, None]).mean())


def recall_of(
    interests_KD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    rows: NDArray[np.int64],
    *,
    num_candidates: int,
    excluded_rows: NDArray[np.int64],
) -> float:
    """Return the share of the exact candidates of one request that an answer holds, 0 to 1; ties count.

    Args:
        interests_KD: Of the request.
        vectors_ND: All item vectors; may be memory-mapped.
        rows: The answer.
        num_candidates: How many were wanted; fewer where fewer items are eligible.
        excluded_rows: Rows that may not be among the candidates: in an answer they find nothing.
    """
    interests_1KD = interests_KD[None]
    exact_1S, _ = exact_search(interests_1KD, vectors_ND, num_candidates, excluded_rows=excluded_rows)
    if not exact_1S.size:
        return 1.0
    scores_1M = true_scores(interests_1KD, vectors_ND, np.setdiff1d(rows, excluded_rows)[None])
    return min(1.0, int(reaches(scores_1M, exact_1S[:, -1:]).sum()) / exact_1S.size)
