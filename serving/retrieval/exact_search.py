"""The best items of a few interests, without an index: among all items, or among given ones.

Legend: K interests, N items, D embedding, S results per interest, A items among which to search.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_ITEMS_AT_ONCE: Final = 1 << 16
"""Bounds the memory: scores of so many items are held at a time."""


def exact_search(
    interests_KD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_results: int,
    *,
    among_rows: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best items of each interest, by scoring each.

    Args:
        interests_KD: Finite.
        vectors_ND: Item vectors.
        num_results: How many each interest wants.
        among_rows: Rows to choose from, [A], ascending and unique; None for all.

    Returns:
        `scores_KS` best first and `rows_KS`; S is `num_results`, or the number of items where that is
        smaller.
    """
    num_items = len(vectors_ND) if among_rows is None else len(among_rows)
    best_scores = np.empty((len(interests_KD), 0), np.float32)
    best_rows = np.empty((len(interests_KD), 0), np.int64)
    for start in range(0, num_items, _ITEMS_AT_ONCE):
        end = min(start + _ITEMS_AT_ONCE, num_items)
        if among_rows is None:
            vectors_AD, rows_A = vectors_ND[start:end], np.arange(start, end)
        else:
            rows_A = among_rows[start:end]
            vectors_AD = vectors_ND[rows_A]
        scores = interests_KD @ vectors_AD.T
        best_scores, best_rows = _best(
            np.concatenate([best_scores, scores], axis=1),
            np.concatenate([best_rows, np.broadcast_to(rows_A, scores.shape)], axis=1),
            num_results,
        )
    order_KS = np.argsort(-best_scores, axis=1, kind="stable")
    return np.take_along_axis(best_scores, order_KS, 1), np.take_along_axis(best_rows, order_KS, 1)


def _best(
    scores: NDArray[np.float32], rows: NDArray[np.int64], num_results: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The columns with the highest scores of each row of the two arrays, in no order."""
    if scores.shape[1] <= num_results:
        return scores, rows
    columns = np.argpartition(-scores, num_results - 1, axis=1)[:, :num_results]
    return np.take_along_axis(scores, columns, 1), np.take_along_axis(rows, columns, 1)
