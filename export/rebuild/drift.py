"""How much the answers of two versions differ, over the same real requests, among the items that both have.

Each version answers by itself, so that one index at a time need be in memory.

Legend: Q queries, L history length, K interests, D embedding, M candidates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.exporting.assemble import Assembled, interests_of
from re4.exporting.catalogue.histories import spread
from re4.exporting.index.build import BuiltIndex
from re4.exporting.index.tuning import Goal, num_queries_for
from re4.exporting.sources.published_version import PublishedVersion, answers

_MAX_QUERIES: Final = 500


@dataclass(frozen=True, kw_only=True)
class SharedRequests:
    """Real histories of items that both versions have, in the rows of each."""

    rows_QL: NDArray[np.int64]
    lengths_Q: NDArray[np.int64]
    live_rows_QL: NDArray[np.int64]
    item_ids: ItemIds

    @classmethod
    def of(cls, assembled: Assembled, folder: Path, live: PublishedVersion) -> "SharedRequests":
        """Those of a version whose files are in a folder, which the live version knows too."""
        material = assembled.material
        item_ids = ItemIds.open(folder, assembled.items.id_kind, assembled.items.num_items)
        most = min(_MAX_QUERIES, num_queries_for(len(material.vectors_ND), 1))
        chosen = spread(len(material.rows_PL), most)
        rows_QL, lengths_Q = material.rows_PL[chosen], material.lengths_P[chosen]
        is_real_QL = np.arange(rows_QL.shape[1]) < lengths_Q[:, None]
        live_rows_QL = _rows_in(live.item_ids, item_ids, rows_QL)
        both_Q = ((live_rows_QL >= 0) | ~is_real_QL).all(axis=1)
        return cls(
            rows_QL=rows_QL[both_Q],
            lengths_Q=lengths_Q[both_Q],
            live_rows_QL=np.where(is_real_QL, live_rows_QL, 0)[both_Q],
            item_ids=item_ids,
        )

    def answers_of(self, assembled: Assembled, built: BuiltIndex, goal: Goal) -> NDArray[np.int64]:
        """What the new version answers, deep enough that items which only one of the two has leave enough."""
        if not len(self.rows_QL):
            return np.empty((0, 0), np.int64)
        vectors_ND = assembled.material.vectors_ND
        interests_QKD = interests_of(assembled.exported, vectors_ND, self.rows_QL, self.lengths_Q)
        return answers(built, assembled.index, interests_QKD, vectors_ND, 2 * goal.num_candidates)

    def overlap(self, ours_QM: NDArray[np.int64], live: PublishedVersion, goal: Goal) -> float:
        """The share of the live version's answers given again, among what both have; 0 without requests.

        Args:
            ours_QM: As `answers_of` gives them.
            live: The live version; its index is read here.
            goal: How many candidates count.
        """
        if not len(self.rows_QL):
            return 0.0
        theirs_QM = self._answers_of_live(live, goal)
        return _overlap(
            _rows_in(live.item_ids, self.item_ids, ours_QM),
            np.where(_rows_in(self.item_ids, live.item_ids, theirs_QM) >= 0, theirs_QM, -1),
            goal.num_candidates,
        )

    def _answers_of_live(self, live: PublishedVersion, goal: Goal) -> NDArray[np.int64]:
        longest = live.manifest.model.max_history_length
        interests_QKD = interests_of(
            live.encoder,
            live.vectors_ND,
            self.live_rows_QL[:, :longest],
            np.minimum(self.lengths_Q, longest),
        )
        return answers(
            live.index(), live.manifest.index, interests_QKD, live.vectors_ND, 2 * goal.num_candidates
        )


def _rows_in(wanted: ItemIds, given: ItemIds, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of one version as rows of another; -1 for items that it does not have, and for -1."""
    unique, places = np.unique(rows, return_inverse=True)
    known = unique >= 0
    translated = np.full(len(unique), -1, np.int64)
    if wanted.kind == given.kind and known.any():
        translated[known] = wanted.rows(given.ids(unique[known]))
    return translated[places].reshape(rows.shape)


def _overlap(ours_QM: NDArray[np.int64], theirs_QM: NDArray[np.int64], num_candidates: int) -> float:
    """Mean share of their first candidates that are among our first ones; -1 is nobody's."""
    shares = []
    for ours_M, theirs_M in zip(ours_QM, theirs_QM, strict=True):
        theirs = theirs_M[theirs_M >= 0][:num_candidates]
        ours = ours_M[ours_M >= 0][:num_candidates]
        shares.append(np.isin(theirs, ours).mean() if theirs.size else 0.0)
    return float(np.mean(shares))
