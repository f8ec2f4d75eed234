"""How distinct the interests of a version's users are, by its golden queries.

Legend: Q golden queries, K interests, D embedding, M candidates, S results of an interest.
"""

from dataclasses import asdict, dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from re4.bundle.golden import GoldenQueries
from re4.bundle.scoring.exact_search import exact_search
from re4.exporting.storage.mapped_vectors import chunks
from re4.training.evaluation.interests import (
    are_nearly_one,
    are_of_one_interest,
    collapse_sentence,
    effective_numbers,
    interest_counts,
    mean_overlap,
    overlap_depth,
)

_NUM_CANDIDATES: Final = 50
KEY: Final = "interests"
"""Key of the figures in the manifest's `evaluation`."""


@dataclass(frozen=True, kw_only=True)
class VersionInterests:
    """Figures about the interests of real histories, as `re4 evaluate` defines them."""

    num_requests: int
    num_interests: int
    effective_interests: float
    interest_overlap: float
    interest_cosine: float
    one_interest_lists: float

    @classmethod
    def of(cls, golden: GoldenQueries, vectors_ND: NDArray[np.float32]) -> Self:
        """Compute the figures of golden queries and their exact candidates."""
        interests_QKD = golden.interests_QKD
        num_requests, num_interests, dim = interests_QKD.shape
        rows_QM = golden.candidate_rows_QM[:, :_NUM_CANDIDATES]
        scores_QMK = np.stack(
            [vectors_ND[rows_M] @ z_KD.T for rows_M, z_KD in zip(rows_QM, interests_QKD, strict=True)]
        )
        counts_QK = interest_counts(scores_QMK.argmax(axis=2), num_interests)
        overlap = 1.0
        if num_interests > 1:
            queries = interests_QKD.reshape(-1, 1, dim)
            _, rows_XS = exact_search(queries, vectors_ND, overlap_depth(len(vectors_ND)), read_chunks=chunks)
            own_QKS = rows_XS.reshape(num_requests, num_interests, -1)
            overlap = mean_overlap(own_QKS, np.ones((num_requests, num_interests), np.bool_))
        return cls(
            num_requests=num_requests,
            num_interests=num_interests,
            effective_interests=float(effective_numbers(counts_QK).mean()),
            interest_overlap=overlap,
            interest_cosine=_mean_cosine(interests_QKD),
            one_interest_lists=float(are_of_one_interest(counts_QK).mean()),
        )

    @property
    def collapse(self) -> str:
        """A sentence that the interests are nearly one; empty where they are not, or there is one only."""
        if not are_nearly_one(self.num_interests, self.interest_overlap, None):
            return ""
        return collapse_sentence(self.num_interests, self.interest_overlap, None)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the figures for a manifest, rounded."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """Return the figures in a sentence."""
        return (
            f"effective number of interests {self.effective_interests:.2f} of {self.num_interests}, overlap "
            f"of their own lists {self.interest_overlap:.2f}, cosine {self.interest_cosine:.2f}, lists from "
            f"one interest {self.one_interest_lists:.2f}, over {self.num_requests} real histories"
        )


def _mean_cosine(interests_QKD: NDArray[np.float32]) -> float:
    num_requests, num_interests, _ = interests_QKD.shape
    if num_interests == 1:
        return 1.0
    lengths_QK1 = np.linalg.norm(interests_QKD, axis=2, keepdims=True)
    unit_QKD = interests_QKD / np.maximum(lengths_QK1, 1e-12)
    cosine_QKK = unit_QKD @ unit_QKD.transpose(0, 2, 1)
    num_pairs = num_requests * num_interests * (num_interests - 1)
    return float((cosine_QKK.sum() - np.einsum("qkk->", cosine_QKK)) / num_pairs)
