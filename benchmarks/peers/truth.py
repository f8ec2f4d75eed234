"""What exact search gives for the requests of a benchmark, to judge every server's answers by.

Interests come from the version's encoder, scores from all of its vectors, both in this process. Histories
that differ only by what a server knows of the user are the same for every server.

Legend: Q requests, K interests, D embedding, N items, M candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.load_generator.requests import IdList
from re4.bundle.exact_search import exact_thresholds, reaches, true_scores
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import ENCODER, VECTORS
from re4.bundle.verify import read_manifest

NUM_REQUESTS: Final = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Requests with what their true candidates score at least."""

    interests_QKD: NDArray[np.float32]
    thresholds_Q: NDArray[np.float32]
    """The score of the last true candidate."""
    num_candidates: int
    ids: ItemIds
    vectors_ND: NDArray[np.float32]

    @classmethod
    def of(cls, version: Path, histories: Sequence[IdList], *, num_candidates: int) -> Self:
        """Search exactly for the first `NUM_REQUESTS` histories.

        Args:
            version: Folder of a bundle version.
            histories: Item ids, oldest first, no longer than the model takes.
            num_candidates: M.

        Raises:
            BundleError: the version cannot be read.
        """
        from re4.serving.retrieval.encoder import Encoder

        manifest = read_manifest(version)
        ids = ItemIds.open(version, manifest.items.id_kind, manifest.items.num_items)
        vectors_ND = np.load(version / VECTORS, mmap_mode="r", allow_pickle=False)
        asked = histories[:NUM_REQUESTS]
        rows_QL = np.zeros((len(asked), manifest.model.max_history_length), np.int64)
        for place, history in enumerate(asked):
            rows_QL[place, : len(history)] = ids.rows(history)[::-1]
        encoder = Encoder(
            (version / ENCODER).read_bytes(), manifest.model, max_batch_size=len(asked), where=ENCODER
        )
        lengths_Q = np.array([len(history) for history in asked])
        interests_QKD, _ = encoder.encode(vectors_ND[rows_QL], lengths_Q)
        return cls(
            interests_QKD=interests_QKD,
            thresholds_Q=exact_thresholds(interests_QKD, vectors_ND, num_candidates),
            num_candidates=num_candidates,
            ids=ids,
            vectors_ND=vectors_ND,
        )

    def recall(self, answers: Sequence[IdList]) -> dict[str, Any]:
        """How many of the true candidates the answers hold: mean, lowest, number of requests (the first)."""
        recalls = []
        for answer, interests_KD, threshold in zip(
            answers, self.interests_QKD, self.thresholds_Q, strict=False
        ):
            rows = np.unique(self.ids.rows(answer))
            scores = true_scores(interests_KD[None], self.vectors_ND, rows[None])
            hits = int(reaches(scores, threshold).sum())
            recalls.append(min(1.0, hits / min(self.num_candidates, len(self.vectors_ND))))
        return {"mean": float(np.mean(recalls)), "min": float(np.min(recalls)), "num_requests": len(recalls)}
