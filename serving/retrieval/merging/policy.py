"""What a merge policy is: the shape of its question and of its answer.

Legend: K interests, S results per interest, L history length, M candidates.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Merged(NamedTuple):
    """One list of candidates in the policy's order; no row twice, none that was excluded."""

    rows_M: NDArray[np.int64]
    scores_M: NDArray[np.float32]
    interest_numbers_M: NDArray[np.int64]
    """The interest, 0 to K-1, that gave the score."""


class MergePolicy(Protocol):
    """Makes one list of the lists that K interests found."""

    def __call__(
        self,
        scores_KS: NDArray[np.float32],
        rows_KS: NDArray[np.int64],
        excluded_rows: NDArray[np.int64],
        num_candidates: int,
        attention_KL: NDArray[np.float32],
    ) -> Merged:
        """Merge.

        Args:
            scores_KS: Scores of each interest's results, best first.
            rows_KS: Item rows of the results, -1 where an interest found no further item.
            excluded_rows: Rows that must not be returned, ascending and unique.
            num_candidates: How many to return at most.
            attention_KL: Each interest's attention over the history, newest first; every row sums to 1.

        Returns:
            Fewer than `num_candidates` only where the lists hold no more.
        """
        ...
