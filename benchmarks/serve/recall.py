"""Recall of a server's answers against exact search over every vector of a bundle version.

Legend: Q requests, K interests, D embedding, S results of a search, M candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4 import Connection, RetrievalClient
from re4.benchmarks.load_generator.requests import IdList
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import VECTORS
from re4.bundle.scoring.exact_search import exact_search, reaches, true_scores
from re4.bundle.verify import read_manifest

NUM_RECALL_REQUESTS: Final = 200
_TIMEOUT_S: Final = 10.0


class ExactAnswers:
    """The scores of the exact candidates of requests, found for all of them in one pass over the vectors."""

    def __init__(
        self,
        version: Path,
        interests_QKD: NDArray[np.float32],
        num_candidates: int,
        excluded: Sequence[IdList] = (),
    ) -> None:
        """Search a version's folder; `excluded` are ids that each request's candidates must not have."""
        items = read_manifest(version).items
        self._ids = ItemIds.open(version, items.id_kind, items.num_items)
        self._vectors_ND = np.load(version / VECTORS, mmap_mode="r", allow_pickle=False)
        self._interests_QKD = interests_QKD
        self._excluded = [self._ids.rows(ids) for ids in excluded or [[]] * len(interests_QKD)]
        num_results = num_candidates + max(map(len, self._excluded))
        found_QS = exact_search(interests_QKD, self._vectors_ND, num_results)
        self._scores_QM = [
            scores_S[~np.isin(rows_S, rows)][:num_candidates]
            for scores_S, rows_S, rows in zip(*found_QS, self._excluded, strict=True)
        ]

    def recall(self, answers: Sequence[IdList]) -> dict[str, Any]:
        """Return mean and lowest recall of the first answers, and their number; ties count as hits."""
        recalls = []
        requests = zip(answers, self._interests_QKD, self._scores_QM, self._excluded, strict=False)
        for answer, interests_KD, exact_M, excluded in requests:
            rows = np.setdiff1d(self._ids.rows(answer), excluded)
            found = true_scores(interests_KD[None], self._vectors_ND, rows[None])
            hits = int(reaches(found, exact_M[-1:]).sum()) if len(exact_M) else 1
            recalls.append(min(1.0, hits / max(1, len(exact_M))))
        return {"mean": float(np.mean(recalls)), "min": float(np.min(recalls)), "num_requests": len(recalls)}


def measure_recall(
    address: str,
    connection: Connection,
    histories: Sequence[IdList],
    version_path: Path,
    *,
    num_candidates: int,
    exclude_history: bool,
) -> dict[str, Any]:
    """Send the first `NUM_RECALL_REQUESTS` histories again, and compare with exact search.

    Exact search uses the interests that the server returns, so that search and merge are measured.

    Returns:
        `mean`, `min`, `num_requests` and `num_candidates`; or `problem`, where another version answered.
    """
    version = read_manifest(version_path).version
    searched, answers, interests = [], [], []
    with RetrievalClient(address, timeout_s=_TIMEOUT_S, connection=connection) as client:
        for history in histories[:NUM_RECALL_REQUESTS]:
            found = client.retrieve(
                history, num_candidates, exclude_history=exclude_history, return_interests=True
            )
            if found.version != version:
                return {"problem": f"{found.version} answered, the bundle given is {version}"}
            if found.interests is not None:  # else the most popular items: there was no search
                searched.append(history)
                answers.append(found.item_ids)
                interests.append(found.interests.vectors)
    if not interests:
        return {"problem": "no request was answered by a search"}
    excluded = searched if exclude_history else []
    exact = ExactAnswers(version_path, np.stack(interests), num_candidates, excluded)
    return exact.recall(answers) | {"num_candidates": num_candidates}
