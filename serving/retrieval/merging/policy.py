"""The interface of merge policies: their input, their output and what they need of the search.

Legend: K interests, S results per interest, L history length, M candidates.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # filters import FAISS, which the supervisor must not load
    from re4.serving.retrieval.filters import AllowedItems

NO_ROWS: Final = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty(0, np.float32)


class MergedList(NamedTuple):
    """One list of candidates in the policy's order; no row twice, no excluded row."""

    rows_M: NDArray[np.int64] = NO_ROWS
    scores_M: NDArray[np.float32] = _NO_SCORES
    interest_numbers_M: NDArray[np.int64] = NO_ROWS
    """The interest, 0 to K-1, that gave the score."""

    def at(self, places: slice | NDArray[np.integer] | NDArray[np.bool_]) -> "MergedList":
        """Return the candidates at some places of the list."""
        return MergedList(self.rows_M[places], self.scores_M[places], self.interest_numbers_M[places])


class SearchResults(NamedTuple):
    """The results of one query's search: a list for each interest, or the best of all lists."""

    scores_KS: NDArray[np.float32] = _NO_SCORES
    """Best first."""
    rows_KS: NDArray[np.int64] = NO_ROWS
    """Item rows; -1 where an interest found no further item."""
    best: MergedList | None = None
    """The best items by maximum score, where these were searched in place of the lists. Excluded
    rows may be among them; row -1 where there are no more."""
    allowed: "AllowedItems | None" = None
    """The items among which was searched; None for the whole catalogue."""


class Merge(Protocol):
    """The function of a merge policy."""

    def __call__(
        self,
        results: SearchResults,
        excluded_rows: NDArray[np.int64],
        num_candidates: int,
        attention_KL: NDArray[np.float32],
        /,
    ) -> MergedList:
        """Merge.

        Args:
            results: Of a query's search.
            excluded_rows: Rows that must not be returned, ascending and unique.
            num_candidates: How many to return at most.
            attention_KL: Each interest's attention over the history, newest first; every row sums
                to 1.

        Returns:
            Fewer than `num_candidates` only where the results hold no more.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class MergePolicy:
    """A way to make one list of the lists that K interests found."""

    name: str
    merge: Merge
    needs_each_list: bool = True
    """Whether `merge` reads each interest's own list. Otherwise it reads only `best_items`, which
    an approximate index finds with less work."""
    balance: float | None = None
    """Of a policy that reads each list: how far an index may treat the interests unequally, so that they can
    share one search budget. 0: only the best items over all interests must be found. 1: every interest counts
    alike. None: each interest has a budget of its own, and its list is complete."""
    depth_factor: int = 1
    """How many items `merge` chooses among, for each candidate."""
    is_ordered_by_score: bool = True
    """Whether the list is in order of score; otherwise in the order of choosing."""

    def search_depth(self, num_candidates: int, num_excluded: int) -> int:
        """Return how many results each interest must find; 0 where no candidates are wanted."""
        return num_candidates and num_candidates * self.depth_factor + num_excluded
