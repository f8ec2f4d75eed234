"""Recall as a caller meets it: of the one list that K searches are merged into, against the exact list.

An item counts as found where its true score is at least that of the last exact candidate, so that ties harm
nobody, and scores that an index makes up help it nothing.

Legend: Q requests, K interests, D embedding, N items, M candidates, S results per interest,
U rows to be read.
"""

from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.common.faiss_settings import use_matrix_products
from re4.exporting.storage.mapped_vectors import pieces, rows_of

use_matrix_products()

_TOLERANCE: Final = 1e-5
"""Relative to the largest score: float32 sums in another order differ by less."""


def exact_thresholds(
    interests_QKD: NDArray[np.float32], vectors_ND: NDArray[np.float32], num_candidates: int
) -> NDArray[np.float32]:
    """The score of each request's last exact candidate, [Q], by comparing every item.

    Args:
        interests_QKD: Finite.
        vectors_ND: Finite; may be memory-mapped.
        num_candidates: M, at most N.
    """
    num_queries, num_interests, embedding_dim = interests_QKD.shape
    queries = np.ascontiguousarray(interests_QKD.reshape(-1, embedding_dim))
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start, piece in pieces(vectors_ND):
        in_piece = faiss.knn(
            queries, piece, min(num_candidates, len(piece)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores = np.concatenate([scores, in_piece[0]], axis=1)
        rows = np.concatenate([rows, start + in_piece[1]], axis=1)
        if scores.shape[1] > num_candidates:
            best = np.argpartition(-scores, num_candidates - 1, axis=1)[:, :num_candidates]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    shape = (num_queries, num_interests, num_candidates)
    last_Q = merge_max_score(scores.reshape(shape), rows.reshape(shape), num_candidates)[:, -1]
    # Rows far apart are read in order: each maps a good deal of what is around it.
    rows_U, places_Q = np.unique(last_Q, return_inverse=True)
    thresholds_Q: NDArray[np.float32] = true_scores(
        interests_QKD, rows_of(vectors_ND, rows_U), places_Q.reshape(-1, 1)
    )[:, 0]
    return thresholds_Q


def merge_max_score(
    scores_QKS: NDArray[np.float32], rows_QKS: NDArray[np.int64], num_candidates: int
) -> NDArray[np.int64]:
    """The rows of the best items over all interests, [Q, M], -1 where the searches found no more."""
    rows_QM = np.full((len(rows_QKS), num_candidates), -1, np.int64)
    for answer_M, scores_KS, rows_KS in zip(rows_QM, scores_QKS, rows_QKS, strict=True):
        order = np.argsort(-scores_KS, axis=None, kind="stable")
        rows = rows_KS.ravel()[order]
        unique, first = np.unique(rows, return_index=True)
        best = rows[np.sort(first[unique >= 0])][:num_candidates]
        answer_M[: len(best)] = best
    return rows_QM


def true_scores(
    interests_QKD: NDArray[np.float32], vectors_ND: NDArray[np.float32], rows_QM: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Maximum over interests of the inner product, float32 [Q, M]; minus infinity where the row is -1."""
    scores_QM = np.empty(rows_QM.shape, np.float32)
    for scores_M, interests_KD, rows_M in zip(scores_QM, interests_QKD, rows_QM, strict=True):
        scores_M[:] = (vectors_ND[rows_M] @ interests_KD.T).max(axis=1)
    scores_QM[rows_QM < 0] = -np.inf
    return scores_QM


def merged_recall(
    interests_QKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    rows_QM: NDArray[np.int64],
    thresholds_Q: NDArray[np.float32],
) -> float:
    """The mean share of the exact candidates that was found, 0 to 1."""
    margins_Q = _TOLERANCE * np.abs(thresholds_Q)
    found_QM = true_scores(interests_QKD, vectors_ND, rows_QM) >= (thresholds_Q - margins_Q)[:, None]
    return float(found_QM.mean())
