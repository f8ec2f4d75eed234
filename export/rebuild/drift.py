"""Drift: how much the answers of two versions to the same real requests differ, among items that both have.

One index at a time is in memory.

Legend: Q queries, L history length, K interests, D embedding, M candidates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.exporting.assemble import AssembledVersion, interests_of
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.tuning import num_queries_for
from re4.exporting.settings import RecallTarget
from re4.exporting.sources.published_version import PublishedVersion

_MAX_QUERIES: Final = 500


@dataclass(frozen=True, kw_only=True)
class SharedRequests:
    """Real histories of items that both versions have, in the rows of each."""

    rows_QL: NDArray[np.int64]
    lengths_Q: NDArray[np.int64]
    live_rows_QL: NDArray[np.int64]
    item_ids: ItemIds

    @classmethod
    def of(cls, assembled: AssembledVersion, folder: Path, live: PublishedVersion) -> "SharedRequests":
        """Return the requests of a version, its files in a folder, that the live version can answer too."""
        inputs = assembled.inputs
        item_ids = ItemIds.open(folder, assembled.items.id_kind, assembled.items.num_items)
        most = min(_MAX_QUERIES, num_queries_for(len(inputs.vectors_ND), 1))
        chosen = evenly_spaced(len(inputs.rows_PL), most)
        rows_QL, lengths_Q = inputs.rows_PL[chosen], inputs.lengths_P[chosen]
        is_real_QL = np.arange(rows_QL.shape[1]) < lengths_Q[:, None]
        live_rows_QL = _rows_in(live.item_ids, item_ids, rows_QL)
        both_Q = ((live_rows_QL >= 0) | ~is_real_QL).all(axis=1)
        return cls(
            rows_QL=rows_QL[both_Q],
            lengths_Q=lengths_Q[both_Q],
            live_rows_QL=np.where(is_real_QL, live_rows_QL, 0)[both_Q],
            item_ids=item_ids,
        )

    def answers_of(
        self, assembled: AssembledVersion, built: BuiltIndex, target: RecallTarget
    ) -> NDArray[np.int64]:
        """Return the new version's answers, twice as deep: items of one version only are dropped later."""
        if not len(self.rows_QL):
            return np.empty((0, 0), np.int64)
        vectors_ND = assembled.inputs.vectors_ND
        interests_QKD = interests_of(assembled.encoder, vectors_ND, self.rows_QL, self.lengths_Q)
        return built.candidates(
            assembled.index.search_parameters, interests_QKD, vectors_ND, 2 * target.num_candidates
        )

    def answers_of_live(self, live: PublishedVersion, target: RecallTarget) -> NDArray[np.int64]:
        """Return the live version's answers, in its rows and twice as deep; its index is read here."""
        if not len(self.rows_QL):
            return np.empty((0, 0), np.int64)
        longest = live.manifest.model.max_history_length
        interests_QKD = interests_of(
            live.encoder,
            live.vectors_ND,
            self.live_rows_QL[:, :longest],
            np.minimum(self.lengths_Q, longest),
        )
        return live.index().candidates(
            live.manifest.index.search_parameters, interests_QKD, live.vectors_ND, 2 * target.num_candidates
        )

    def overlap(
        self,
        ours_QM: NDArray[np.int64],
        theirs_QM: NDArray[np.int64],
        live: PublishedVersion,
        target: RecallTarget,
    ) -> float:
        """Return the share of the live version's answers given again, among shared items; 0 without requests.

        Args:
            ours_QM: Answers from `answers_of`.
            theirs_QM: Answers from `answers_of_live`.
            live: The live version.
            target: The number of candidates that count.
        """
        if not len(self.rows_QL):
            return 0.0
        return _overlap(
            _rows_in(live.item_ids, self.item_ids, ours_QM),
            np.where(_rows_in(self.item_ids, live.item_ids, theirs_QM) >= 0, theirs_QM, -1),
            target.num_candidates,
        )


def _rows_in(wanted: ItemIds, given: ItemIds, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Translate rows of one version to rows of another; -1 for items that it does not have, and for -1."""
    unique, places = np.unique(rows, return_inverse=True)
    known = unique >= 0
    translated = np.full(len(unique), -1, np.int64)
    if wanted.kind == given.kind and known.any():
        translated[known] = wanted.rows(given.ids(unique[known]))
    return translated[places].reshape(rows.shape)


def _overlap(ours_QM: NDArray[np.int64], theirs_QM: NDArray[np.int64], num_candidates: int) -> float:
    """Return the mean share of their first candidates that are among our first ones; -1 does not count."""
    shares = []
    for ours_M, theirs_M in zip(ours_QM, theirs_QM, strict=True):
        theirs = theirs_M[theirs_M >= 0][:num_candidates]
        ours = ours_M[ours_M >= 0][:num_candidates]
        shares.append(np.isin(theirs, ours).mean() if theirs.size else 0.0)
    return float(np.mean(shares))
