"""Exact candidates for the requests of a benchmark, and the recall of a server's answers against them.

Interests come from the version's encoder, scores from all of its vectors, both in this process.

Legend: Q requests, K interests, D embedding, N items, M candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from re4.benchmarks.load_generator.requests import IdList
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import VECTORS
from re4.bundle.scoring.exact_search import exact_thresholds, reaches, true_scores
from re4.bundle.verify import read_manifest
from re4.retriever import Retriever

NUM_REQUESTS: Final = 200


class ExactAnswers:
    """The interests of the first `NUM_REQUESTS` histories, and the scores of their last exact candidates."""

    def __init__(self, version: Path, histories: Sequence[IdList], *, num_candidates: int) -> None:
        """Search a version's folder exactly for M candidates of each history."""
        items = read_manifest(version).items
        self._ids = ItemIds.open(version, items.id_kind, items.num_items)
        self._vectors_ND = np.load(version / VECTORS, mmap_mode="r", allow_pickle=False)
        with Retriever.open(version) as retriever:
            self._interests_QKD = np.stack(
                [retriever.encode(history).vectors for history in histories[:NUM_REQUESTS]]
            )
        self._thresholds_Q = exact_thresholds(self._interests_QKD, self._vectors_ND, num_candidates)
        self._num_candidates = min(num_candidates, items.num_items)

    def recall(self, answers: Sequence[IdList]) -> dict[str, Any]:
        """Return mean and lowest recall of the first answers, and their number; ties count as hits."""
        recalls = []
        for answer, interests_KD, threshold in zip(
            answers, self._interests_QKD, self._thresholds_Q, strict=False
        ):
            rows = np.unique(self._ids.rows(answer))
            scores = true_scores(interests_KD[None], self._vectors_ND, rows[None])
            recalls.append(min(1.0, int(reaches(scores, threshold).sum()) / self._num_candidates))
        return {"mean": float(np.mean(recalls)), "min": float(np.min(recalls)), "num_requests": len(recalls)}
