"""Check that a loaded version answers its own golden queries as expected, modulo ties.

It finds defects of intact files: an encoder, vectors or an index that belong to another version.

Legend: Q queries, K interests, D embedding, M candidates, N items.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.golden import GoldenQueries
from re4.common.errors import (
    BundleMismatchError,
    BundleUnavailableError,
    IndexUnavailableError,
    Re4Error,
    TooLateError,
)
from re4.serving.retrieval.indexes.kinds import KINDS
from re4.serving.retrieval.pipeline import Query, QueryResult
from re4.serving.versions.snapshot import Snapshot

TOLERANCE: Final = 1e-3
"""Largest allowed difference, relative to the largest value; sums in another order differ far less."""

_CHUNK_ITEMS: Final = 1 << 16


def check_golden(snapshot: Snapshot, golden: GoldenQueries, *, max_batch_size: int) -> None:
    """Run the golden queries of a version.

    Raises:
        BundleMismatchError: the queries do not fit the version, an item vector is not finite, or an
            answer is not the expected one. The message names it and the difference.
        BundleUnavailableError: the index is on another machine, which does not answer.
        BundleDamagedError: the files of the ids or of an attribute contradict each other.
    """
    _check_vectors(snapshot)
    snapshot.item_ids.check()
    snapshot.attributes.check()
    if snapshot.titles is not None:
        snapshot.titles.check()
    _check_fit(snapshot, golden)
    where = f"{snapshot.path}: golden query"
    num_queries, num_candidates = golden.candidate_rows_QM.shape
    recalls = []
    for start in range(0, num_queries, max_batch_size):
        span = range(start, min(start + max_batch_size, num_queries))
        answers = snapshot.pipeline.run(
            [
                Query(
                    history_rows_L=golden.rows_QL[q, : golden.lengths_Q[q]],
                    num_candidates=num_candidates,
                )
                for q in span
            ]
        )
        for q, answer in zip(span, answers, strict=True):
            if isinstance(answer, IndexUnavailableError | TooLateError):
                raise BundleUnavailableError(f"{where} {q}: {answer}")
            if isinstance(answer, Re4Error):
                raise BundleMismatchError(f"{where} {q}: {answer}")
            _compare_interests(answer.interests_KD, golden.interests_QKD[q], f"{where} {q}")
            recalls.append(
                _recall(snapshot, answer, golden.candidate_rows_QM[q], golden.scores_QM[q], f"{where} {q}")
            )
    recall, required = float(np.mean(recalls)), KINDS[snapshot.manifest.index.kind].min_golden_recall
    if recall < required:
        raise BundleMismatchError(
            f"{snapshot.path}: finds {recall:.2%} of the golden candidates, "
            f"a {snapshot.manifest.index.kind} index must find {required:.2%}"
        )


def _check_vectors(snapshot: Snapshot) -> None:
    vectors_ND = snapshot.vectors_ND
    if not isinstance(vectors_ND, np.ndarray):  # those of the collection were looked at before it was filled
        return
    for start in range(0, len(vectors_ND), _CHUNK_ITEMS):
        finite = np.isfinite(vectors_ND[start : start + _CHUNK_ITEMS]).all(axis=1)
        if not finite.all():
            raise BundleMismatchError(
                f"{snapshot.path}: the vector of item row {start + int(finite.argmin())} is not finite"
            )


def _check_fit(snapshot: Snapshot, golden: GoldenQueries) -> None:
    model, num_items = snapshot.manifest.model, snapshot.manifest.items.num_items
    rows = (golden.rows_QL, golden.candidate_rows_QM)
    if (
        golden.interests_QKD.shape[1:] != (model.num_interests, model.embedding_dim)
        or not 1 <= golden.lengths_Q.min() <= golden.lengths_Q.max() <= golden.rows_QL.shape[1]
        or golden.lengths_Q.max() > model.max_history_length
        or min(array.min() for array in rows) < 0
        or max(array.max() for array in rows) >= num_items
        or golden.candidate_rows_QM.shape[1] > num_items
        or not (np.isfinite(golden.interests_QKD).all() and np.isfinite(golden.scores_QM).all())
    ):
        raise BundleMismatchError(f"{snapshot.path}: the golden queries are not of this model and catalogue")


def _compare_interests(found_KD: NDArray[np.float32], expected_KD: NDArray[np.float32], where: str) -> None:
    difference, allowed = float(np.abs(found_KD - expected_KD).max()), _margin(expected_KD)
    if difference > allowed:
        raise BundleMismatchError(
            f"{where}: the interests differ by {difference:.3g}, {allowed:.3g} is allowed: the encoder and "
            "the item vectors do not belong together"
        )


def _recall(
    snapshot: Snapshot,
    answer: QueryResult,
    expected_rows_M: NDArray[np.int64],
    expected_M: NDArray[np.float32],
    where: str,
) -> float:
    """Return the share of the exact candidates that was found; an item that ties with the last one counts."""
    found, margin = answer.merged, _margin(expected_M)
    expected_scores = _true_scores(snapshot, answer.interests_KD, expected_rows_M)
    if not _close(expected_scores, expected_M, margin):
        raise BundleMismatchError(f"{where}: the item vectors are not those that it was answered with")
    found_scores = _true_scores(snapshot, answer.interests_KD, found.rows_M)
    # An approximate index may miss an item in the list of its best interest.
    named_M = (snapshot.vectors_of(found.rows_M) * answer.interests_KD[found.interest_numbers_M]).sum(axis=1)
    if not _close(found.scores_M, named_M, margin):
        raise BundleMismatchError(
            f"{where}: the index scores items otherwise than their vectors do: they are not of one catalogue"
        )
    best_M = np.sort(found_scores)[::-1]
    if (best_M > expected_M[: len(best_M)] + margin).any():
        raise BundleMismatchError(f"{where}: there are better items than those that it expects")
    return float((found_scores >= expected_M[-1] - margin).sum()) / len(expected_M)


def _true_scores(
    snapshot: Snapshot, interests_KD: NDArray[np.float32], rows_M: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the best inner product with any interest; minus infinity where the row is -1."""
    scores_M = (snapshot.vectors_of(rows_M) @ interests_KD.T).max(axis=1)
    return np.where(rows_M < 0, np.float32(-np.inf), scores_M)


def _margin(expected: NDArray[np.float32]) -> float:
    return TOLERANCE * float(np.abs(expected).max())


def _close(found_M: NDArray[np.float32], expected_M: NDArray[np.float32], margin: float) -> bool:
    return bool(np.allclose(found_M, expected_M, rtol=0, atol=margin))
