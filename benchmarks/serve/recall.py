"""Recall of a server's answers against exact search, on requests of the benchmark itself.

Exact search is over every vector of the bundle version that answered, with the interests that the server
returns: it measures the search and the merge. Legend: N items, D embedding, M candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from re4 import Connection, RetrievalClient
from re4.benchmarks.load_generator.requests import IdList
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import VECTORS
from re4.bundle.scoring.exact_search import recall_of
from re4.bundle.verify import read_manifest

NUM_RECALL_REQUESTS: Final = 200
_TIMEOUT_S: Final = 10.0


def measure_recall(
    address: str,
    connection: Connection,
    version_path: Path,
    histories: Sequence[IdList],
    *,
    num_candidates: int,
    exclude_history: bool,
) -> dict[str, Any]:
    """Send the first `NUM_RECALL_REQUESTS` histories again, and compare with exact search.

    Returns:
        `mean`, `min`, `num_requests` and `num_candidates`; or `problem`, where another version answered.

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
                    found.interests.vectors,
                    vectors_ND,
                    ids.rows(found.item_ids),
                    num_candidates=num_candidates,
                    excluded_rows=excluded[excluded >= 0],
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
