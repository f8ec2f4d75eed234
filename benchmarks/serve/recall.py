"""How many of the truly best items a server's answers hold, on requests of the benchmark itself.

The truth is computed here, in numpy, over every vector of the bundle version that answered: the best by inner
product with any of the interests that the server itself gives. So this measures the search and the merge.

Legend: K interests, D embedding, N items, M candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.load_generator.requests import IdList
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import VECTORS
from re4.bundle.verify import read_manifest
from re4.serving.client.client import Connection, RetrievalClient

NUM_RECALL_REQUESTS: Final = 200
_BLOCK_ROWS: Final = 1 << 18
_TIMEOUT_S: Final = 10.0
_TOLERANCE: Final = 1e-5
"""Relative: scores this close to the last true one are ties, which float32 sums in another order decide."""


def measure_recall(
    address: str,
    connection: Connection,
    version_path: Path,
    histories: Sequence[IdList],
    *,
    num_candidates: int,
    exclude_history: bool,
) -> dict[str, Any]:
    """Ask for some of the histories again and compare with exact search.

    Args:
        address: The server.
        connection: TLS and token.
        version_path: The bundle version that it serves.
        histories: The benchmark's; the first `NUM_RECALL_REQUESTS` are asked.
        num_candidates: M, as in the benchmark.
        exclude_history: As in the benchmark.

    Returns:
        `mean`, `min`, `num_requests` and `num_candidates`; or `problem`, where the answers came from
        another version.

    Raises:
        ServerError: a request failed.
        BundleError: the version cannot be read.
    """
    manifest = read_manifest(version_path)
    ids = ItemIds.open(version_path, manifest.items.id_kind, manifest.items.num_items)
    vectors_ND = np.load(version_path / VECTORS, mmap_mode="r", allow_pickle=False)
    recalls = []
    with RetrievalClient(address, timeout_s=_TIMEOUT_S, connection=connection) as client:
        for history in histories[:NUM_RECALL_REQUESTS]:
            found = client.retrieve(
                history, num_candidates, exclude_history=exclude_history, return_interests=True
            )
            if found.version != manifest.version:
                return {"problem": f"{found.version} answered, the bundle given is {manifest.version}"}
            if found.interests is None:  # the most popular items: there was no search
                continue
            excluded = ids.rows(history) if exclude_history else np.zeros(0, np.int64)
            recalls.append(
                recall_of(
                    ids.rows(found.item_ids),
                    found.interests.vectors,
                    vectors_ND,
                    excluded_rows=excluded[excluded >= 0],
                    num_candidates=num_candidates,
                )
            )
    if not recalls:
        return {"problem": "no request was answered by a search"}
    return {
        "mean": float(np.mean(recalls)),
        "min": float(np.min(recalls)),
        "num_requests": len(recalls),
        "num_candidates": num_candidates,
    }


def recall_of(
    rows_M: NDArray[np.int64],
    interests_KD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    *,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
) -> float:
    """Share of the true best items that an answer holds; items that tie with the last of them are as good.

    Args:
        rows_M: The answer's distinct item rows.
        interests_KD: The interests that were searched with.
        vectors_ND: All item vectors; may be a memory map, and is read in blocks.
        excluded_rows: Items that may not be among the candidates.
        num_candidates: How many were asked for.
    """
    scores_N = np.concatenate(
        [
            (vectors_ND[start : start + _BLOCK_ROWS] @ interests_KD.T).max(axis=1)
            for start in range(0, len(vectors_ND), _BLOCK_ROWS)
        ]
    )
    answered_M = scores_N[np.setdiff1d(rows_M, excluded_rows)]
    scores_N[excluded_rows] = -np.inf
    num_true = min(num_candidates, int(np.isfinite(scores_N).sum()))
    if num_true == 0:
        return 1.0
    last = np.partition(scores_N, -num_true)[-num_true]
    return min(1.0, float((answered_M >= last - _TOLERANCE * abs(last)).sum()) / num_true)
