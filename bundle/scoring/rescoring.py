"""Re-scoring: from the search results of an index to candidates with exact scores.

An index scores by its codes, approximately, and searches for each interest separately. The results of all
interests of a request form one pool. The approximate scores select the best items of the pool, and the item
vectors give each of them its exact score with *every* interest. An item thus gets its best interest,
whichever search found it, and the index file needs no vectors. Servers and the tuning of an index re-score.

Legend: B requests, K interests, S results of a search, D embedding, N items, P rows of a pool, M candidates.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.common.native_code import address_of, is_native_allowed, load_optional_library
from re4.common.sortable import MAX_SORTABLE, sortable

_SOURCE: Final = Path(__file__).with_name("best_rescored.c")
_NOTHING: Final = (1 << 63) - 1
"""A key after all others; its lower half, as a row, is -1."""


@dataclass(frozen=True, kw_only=True)
class CandidatePool:
    """The items from which candidates are chosen, with exact scores."""

    rows_BP: NDArray[np.int64]
    """Ascending in each request; -1 at a position without an item: nothing found, or a duplicate."""
    scores_BKP: NDArray[np.float32]
    """Inner products with each interest; minus infinity at a position without an item."""


def rescore(
    scores_BKS: NDArray[np.float32],
    rows_BKS: NDArray[np.int64],
    interests_BKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    size: int,
    more: tuple[int, NDArray[np.float32]] | None = None,
) -> CandidatePool:
    """Score the best items that the interests of each request found by their vectors.

    Args:
        scores_BKS: Approximate scores of the index.
        rows_BKS: Rows of the found items, below 2³¹; -1 where a search found no more.
        interests_BKD: Interest vectors of the search.
        vectors_ND: Item vectors; may be memory-mapped.
        size: Largest number of items of a request to score.
        more: The first row of further items, at least N, and their vectors; None for none.
    """
    num_requests, num_interests, num_results = rows_BKS.shape
    shape = (num_requests, num_interests * num_results)
    rows_BP = rows_BKS.reshape(shape).astype(np.int32)
    if size < shape[1]:
        rows_BP = _most_promising(scores_BKS.reshape(shape), rows_BP, size)
    rows_BP.sort(axis=1)
    vectors_BPD = vectors_ND.take(rows_BP, axis=0, mode="wrap")
    if more is not None:
        first_row, vectors_RD = more
        places = np.flatnonzero(rows_BP >= first_row)
        rows = rows_BP.reshape(-1)[places] - first_row
        vectors_BPD.reshape(-1, vectors_ND.shape[1])[places] = vectors_RD.take(rows, axis=0)
    with np.errstate(invalid="ignore"):  # OpenBLAS may raise it for finite numbers
        scores_BPK = np.matmul(vectors_BPD, interests_BKD.transpose(0, 2, 1))
    scores_BKP = np.ascontiguousarray(scores_BPK.transpose(0, 2, 1))
    is_none_BP = rows_BP < 0
    is_none_BP[:, 1:] |= rows_BP[:, 1:] == rows_BP[:, :-1]
    rows_BP[is_none_BP] = -1
    np.copyto(scores_BKP, -np.inf, where=is_none_BP[:, None, :])
    return CandidatePool(rows_BP=rows_BP.astype(np.int64), scores_BKP=scores_BKP)


def _most_promising(
    scores_BR: NDArray[np.float32], rows_BR: NDArray[np.int32], size: int
) -> NDArray[np.int32]:
    """Return the rows with the best approximate scores, unique, in no order; -1 where there are no more."""
    # Both sorts are of integers that hold row and score. The first, by row and then by score, groups the
    # results of an item, best first. The second, by score, separates the best items from the others.
    keys_BR = (rows_BR.astype(np.int64) << 32) + (MAX_SORTABLE - sortable(scores_BR))
    keys_BR.sort(axis=1)
    rows_BR = (keys_BR >> 32).astype(np.int32)
    is_none_BR = rows_BR < 0
    is_none_BR[:, 1:] |= rows_BR[:, 1:] == rows_BR[:, :-1]
    keys_BR = ((keys_BR << 32) ^ np.int64(-1 << 63)) + rows_BR  # the score as a signed number again
    keys_BR[is_none_BR] = _NOTHING
    return np.partition(keys_BR, size - 1, axis=1)[:, :size].astype(np.int32)


def best_candidates(
    pools: CandidatePool, num_candidates: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return the rows with the highest scores over all interests, the scores, and the interest of each.

    Returns:
        Three arrays [B, M], or fewer columns where the pools are smaller: score descending, then row
        ascending; row -1 and a score of minus infinity where a pool holds no more.
    """
    best_BP = pools.scores_BKP.max(axis=1)
    order = best_first(best_BP, num_candidates)
    # Places in the flat arrays: `take` of these costs a fourth of `np.take_along_axis`.
    num_requests, num_interests, pool_size = pools.scores_BKP.shape
    firsts_B = np.arange(0, num_requests * pool_size, pool_size)
    places_BM = order + firsts_B[:, None]
    firsts_BK1 = np.arange(0, pools.scores_BKP.size, pool_size).reshape(num_requests, num_interests, 1)
    of_best_BKM = pools.scores_BKP.take(firsts_BK1 + order[:, None, :])
    return pools.rows_BP.take(places_BM), best_BP.take(places_BM), of_best_BKM.argmax(axis=1)


def best_rescored(
    scores_BKS: NDArray[np.float32],
    rows_BKS: NDArray[np.int64],
    interests_BKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    size: int,
    num_candidates: int,
    more: tuple[int, NDArray[np.float32]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return the best candidates of the re-scored pool, by compiled code where there is a C compiler.

    Args:
        scores_BKS: As for `rescore`.
        rows_BKS: Likewise.
        interests_BKD: Likewise.
        vectors_ND: Likewise.
        size: Likewise.
        num_candidates: As for `best_candidates`.
        more: As for `rescore`.

    Returns:
        As `best_candidates`.
    """
    library = _library() if is_native_allowed() else None
    vectors_RD = vectors_ND[:0] if more is None else more[1]
    are_plain = all(part.flags.c_contiguous and part.dtype == np.float32 for part in (vectors_ND, vectors_RD))
    if library is None or not are_plain:
        pool = rescore(scores_BKS, rows_BKS, interests_BKD, vectors_ND, size, more)
        return best_candidates(pool, num_candidates)
    num_requests, num_interests, dim = interests_BKD.shape
    num_found = rows_BKS.shape[1] * rows_BKS.shape[2]
    num_best = min(num_candidates, size, num_found)
    scores_BKS = np.ascontiguousarray(scores_BKS, np.float32)
    rows_BKS = np.ascontiguousarray(rows_BKS, np.int64)
    interests_BKD = np.ascontiguousarray(interests_BKD, np.float32)
    rows_BM = np.empty((num_requests, num_best), np.int64)
    scores_BM = np.empty((num_requests, num_best), np.float32)
    numbers_BM = np.empty((num_requests, num_best), np.int64)
    failed = library.best_rescored(
        num_requests,
        num_found,
        num_interests,
        dim,
        size,
        num_best,
        address_of(scores_BKS),
        address_of(rows_BKS),
        address_of(interests_BKD),
        address_of(vectors_ND),
        len(vectors_ND),
        address_of(vectors_RD),
        0 if more is None else more[0],
        len(vectors_RD),
        address_of(rows_BM),
        address_of(scores_BM),
        address_of(numbers_BM),
    )
    if failed:
        raise MemoryError(f"no memory to score {num_found} items")
    return rows_BM, scores_BM, numbers_BM


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is none."""
    library = load_optional_library(_SOURCE, "candidates are scored more slowly")
    if library is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.best_rescored.argtypes = [
        *[number] * 6, *[address] * 4, number, address, number, number, *[address] * 3,
    ]  # fmt: skip
    library.best_rescored.restype = ctypes.c_int
    return library


def best_first(scores_BP: NDArray[np.float32], num_best: int) -> NDArray[np.int64]:
    """Return the positions of the highest scores of each request, best first, ties in their order."""
    num_best = min(num_best, scores_BP.shape[1])
    # Score and position in one integer: NumPy partitions and sorts integers several times faster.
    keys_BP = (~sortable(scores_BP) << 32) | np.arange(scores_BP.shape[1])
    if num_best < scores_BP.shape[1]:
        keys_BP = np.partition(keys_BP, num_best - 1, axis=1)[:, :num_best]
    keys_BP.sort(axis=1)
    return np.asarray(keys_BP & 0xFFFFFFFF)


def best_by_interest(pools: CandidatePool, num_results: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best of the request's pool for each interest: `scores_BKS`, best first, and `rows_BKS`.

    Ties are in the order of their rows; the row is -1 where a pool holds no more.
    """
    scores_BKP = pools.scores_BKP
    num_requests, num_interests, pool_size = scores_BKP.shape
    order_QS = best_first(scores_BKP.reshape(-1, pool_size), num_results)
    order_BKS = order_QS.reshape(num_requests, num_interests, -1)
    scores_BKS = np.take_along_axis(scores_BKP, order_BKS, 2)
    rows_BKP = np.broadcast_to(pools.rows_BP[:, None, :], scores_BKP.shape)
    return scores_BKS, np.take_along_axis(rows_BKP, order_BKS, 2)
