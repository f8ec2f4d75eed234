"""The exact best items for given interests: brute force over the whole catalogue, no index involved.

The catalogue is read in pieces, smaller ones for more queries, so that memory depends on neither's number.
Scores are summed in float64 and rounded to float32 once, so that equal item vectors score equally.

Legend: Q queries, K interests, D embedding, N items, M candidates.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.exporting.storage.mapped_vectors import pieces

_ITEMS_AT_ONCE: Final = 65_536
_MAX_PRODUCTS: Final = 1 << 24
"""Inner products held at once."""


def exact_candidates(
    interests_QKD: NDArray[np.float32], vectors_ND: NDArray[np.float32], num_candidates: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the items with the largest inner product with any of a query's interests.

    Args:
        interests_QKD: Finite.
        vectors_ND: Finite; may be memory-mapped.
        num_candidates: At most N.

    Returns:
        Rows, int64 [Q, M], and scores, float32 [Q, M]: score descending, then row ascending.
    """
    num_queries, num_interests, embedding_dim = interests_QKD.shape
    flat_interests = interests_QKD.reshape(num_queries * num_interests, embedding_dim).astype(np.float64)
    best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * num_queries
    items_at_once = max(1, min(_ITEMS_AT_ONCE, _MAX_PRODUCTS // len(flat_interests)))
    for start, piece in pieces(vectors_ND, items_at_once):
        products = flat_interests @ piece.astype(np.float64).T
        products = products.reshape(num_queries, num_interests, len(piece))
        scores_QB = products.max(axis=1).astype(np.float32)
        best = [
            _keep_best(rows, scores, start, scores_B, num_candidates)
            for (rows, scores), scores_B in zip(best, scores_QB, strict=True)
        ]
    return np.stack([rows for rows, _ in best]), np.stack([scores for _, scores in best])


def _keep_best(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    start: int,
    scores_B: NDArray[np.float32],
    num_candidates: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge the best so far with a later block of items that begins at row `start`."""
    promising = np.arange(len(scores_B))
    if len(scores_B) > num_candidates:
        promising = np.flatnonzero(scores_B >= np.partition(scores_B, -num_candidates)[-num_candidates])
    rows = np.concatenate([rows, start + promising])
    scores = np.concatenate([scores, scores_B[promising]])
    # Rows ascend and the sort is stable, so equal scores stay in the order of their rows.
    order = np.argsort(-scores, kind="stable")[:num_candidates]
    return rows[order], scores[order]
