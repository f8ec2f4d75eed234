"""Searching a built index as a server does: K searches, one pool of what they found, true scores.

Legend: B requests, K interests, S results of a search, D embedding, N items, M candidates.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from re4.bundle.rescoring import best_candidates, rescore
from re4.exporting.index.build import BuiltIndex
from re4.exporting.index.families import Settings


def find(
    built: BuiltIndex, settings: Settings, interests_BKD: NDArray[np.float32], num_candidates: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the index itself answers: `scores_BKS`, as rough as its codes, and `rows_BKS`, -1 for nothing."""
    num_requests, num_interests, embedding_dim = interests_BKD.shape
    scores_QS, rows_QS = built.index.search(
        np.ascontiguousarray(interests_BKD.reshape(-1, embedding_dim)),
        min(ceil(num_candidates * settings.get("k_factor", 1)), built.index.ntotal),
        params=built.family.parameters(settings),
    )
    shape = (num_requests, num_interests, -1)
    return scores_QS.reshape(shape), rows_QS.reshape(shape)


def merge(
    found: tuple[NDArray[np.float32], NDArray[np.int64]],
    settings: Settings,
    interests_BKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_candidates: int,
) -> NDArray[np.int64]:
    """The best rows over all interests of what was found, [B, M], -1 where there is no more."""
    scores_BKS, rows_BKS = found
    most = rows_BKS.shape[1] * rows_BKS.shape[2]
    size = ceil(num_candidates * settings["pool_factor"]) if "pool_factor" in settings else most
    pools = rescore(scores_BKS, rows_BKS, interests_BKD, vectors_ND, size)
    return best_candidates(pools, num_candidates)[0]
