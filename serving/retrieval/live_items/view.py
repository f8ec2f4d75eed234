"""The live items as one batch of requests sees them. Immutable and thread-safe.

Legend: N items of the version, R slots of live items, Q queries (requests x interests), B requests,
K interests, D embedding, S results, T further results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.filters import MAX_EXACT_ROWS, AllowedItems, Condition
from re4.serving.retrieval.hidden_items import HiddenItems
from re4.serving.retrieval.live_items.attributes import LiveAttribute, LiveAttributes
from re4.serving.retrieval.live_items.ids import LiveIds
from re4.serving.retrieval.live_items.index import MIN_ROWS, LiveIndex

_MAX_THIN_QUERIES: Final = 16
"""Up to so many queries, a product with the vectors first takes a third of the time."""
_faiss: Any = faiss  # its type hints are incomplete


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveItems:
    """The live items of a version, up to a sequence number."""

    num_items: int
    """N."""
    first_row: int
    """Row of slot 0."""
    item_ids: LiveIds
    attributes: LiveAttributes
    vectors_RD: NDArray[np.float32]
    is_visible_R: NDArray[np.bool_]
    """False for a slot that a later change replaced, and for an item that is removed or hidden."""
    replaced_N: NDArray[np.bool_] | None
    """The version's rows that live items replace or that were removed; None for none."""
    index: LiveIndex | None
    folds_R: NDArray[np.bool_]
    """Whether recorded events improve the vector: the item was not trained, and came without one."""
    num_hidden: int
    """Live items that are hidden."""
    sequence: int

    @cached_property
    def num_visible(self) -> int:
        """Live items that answers may contain."""
        return int(np.count_nonzero(self.is_visible_R))

    @cached_property
    def num_replaced(self) -> int:
        """Rows of the version that no answer may contain because of a change."""
        return 0 if self.replaced_N is None else int(np.count_nonzero(self.replaced_N))

    def visible_rows(self) -> NDArray[np.int64]:
        """Return the rows of live items that answers may contain, ascending."""
        return self.first_row + np.flatnonzero(self.is_visible_R)

    def num_visible_among(self, rows: NDArray[np.int64]) -> int:
        """Return how many of some rows, the version's or live ones, answers may contain.

        No row of the version is hidden or replaced.
        """
        live_rows = rows[np.searchsorted(rows, self.first_row) :]
        if not len(live_rows):
            return len(rows)
        num_live = int(np.count_nonzero(self.is_visible_R[live_rows - self.first_row]))
        return len(rows) - len(live_rows) + num_live

    def replace_vectors(self, vectors_RD: NDArray[np.float32], rows_R: NDArray[np.int64]) -> None:
        """Put the vectors of live rows in the places of an array that has those of row 0 there."""
        is_live_R = rows_R >= self.first_row
        if is_live_R.any():
            vectors_RD[is_live_R] = self.vectors_RD[rows_R[is_live_R] - self.first_row]

    def hidden_over(self, hidden: HiddenItems | None) -> HiddenItems | None:
        """Return all rows that no answer may contain; None where the version has none of them.

        Args:
            hidden: The version's hidden items; None for none.
        """
        if hidden is None and self.replaced_N is None:
            return None
        mask = np.ones(self.first_row + len(self.is_visible_R), np.bool_)
        mask[: self.num_items] = False
        for rows in (None if hidden is None else hidden.mask_N, self.replaced_N):
            if rows is not None:
                mask[: self.num_items] |= rows
        num_rows = int(np.count_nonzero(mask[: self.num_items]))
        np.logical_not(self.is_visible_R, out=mask[self.first_row :])
        return HiddenItems(mask_N=mask, num_rows=num_rows)

    def allowed_by(
        self, of_version: AllowedItems, conditions: Sequence[Condition], hidden: HiddenItems | None
    ) -> AllowedItems:
        """Return the items of the version and the live ones that meet all conditions and are visible.

        Args:
            of_version: The version's items that meet the conditions.
            conditions: On attributes that the version has.
            hidden: As `hidden_over` returned it.
        """
        mask_R = self.is_visible_R.copy()
        for condition in conditions:
            attribute = self.attributes[condition.attribute]
            assert isinstance(attribute, LiveAttribute)
            has_R = attribute.have_any_S(condition.codes_of(attribute))
            mask_R &= ~has_R if condition.is_drop else has_R
        few_rows = of_version.few_rows_S
        if few_rows is not None and len(few_rows) + np.count_nonzero(mask_R) <= MAX_EXACT_ROWS:
            if hidden is not None:
                few_rows = few_rows[~hidden.mask_N[few_rows]]
            return AllowedItems(rows_S=np.concatenate([few_rows, self.first_row + np.flatnonzero(mask_R)]))
        bits = of_version.bits(self.first_row)
        if hidden is not None:
            bits = bits & ~np.packbits(hidden.mask_N[: self.first_row], bitorder="little")
        return AllowedItems.of_bits(np.concatenate([bits, np.packbits(mask_R, bitorder="little")]))

    def merge_lists(
        self,
        scores_QS: NDArray[np.float32],
        rows_QS: NDArray[np.int64],
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        allowed: AllowedItems | None,
        is_exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best items of each query among those found in the version and all live items.

        Args:
            scores_QS: Of the version's items, best first.
            rows_QS: Their rows, -1 at the end where there are no more.
            queries_QD: The K of a request beside each other.
            num_results: How many each query wants.
            allowed: The items that may be found; None for all visible ones.
            is_exact: Whether every live item is compared, however many there are.
        """
        if scores_QS.shape[1] < num_results:
            missing = ((0, 0), (0, num_results - scores_QS.shape[1]))
            scores_QS = np.pad(scores_QS, missing, constant_values=-np.inf)
            rows_QS = np.pad(rows_QS, missing, constant_values=-1)
        thresholds_Q = scores_QS[:, num_results - 1]
        for scores_QT, rows_QT in self._lists(
            queries_QD, thresholds_Q, num_results, allowed, is_exact=is_exact
        ):
            scores_QS = np.concatenate([scores_QS, scores_QT], axis=1)
            rows_QS = np.concatenate([rows_QS, rows_QT], axis=1)
        if scores_QS.shape[1] > num_results:
            order_QS = np.argsort(-scores_QS, axis=1, kind="stable")[:, :num_results]
            scores_QS = np.take_along_axis(scores_QS, order_QS, 1)
            rows_QS = np.take_along_axis(rows_QS, order_QS, 1)
        return scores_QS, rows_QS

    def merge_best(
        self,
        rows_BM: NDArray[np.int64],
        scores_BM: NDArray[np.float32],
        numbers_BM: NDArray[np.int64],
        queries_QD: NDArray[np.float32],
        num_results: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return the best items by maximum score, as `re4.bundle.scoring.rescoring.best_candidates`.

        Args:
            rows_BM: The version's best items of each request.
            scores_BM: Their scores, best first.
            numbers_BM: Their interests.
            queries_QD: The K interests of a request beside each other.
            num_results: How many each request wants.
        """
        num_requests = len(rows_BM)
        is_full = rows_BM.shape[1] >= num_results
        thresholds_B = (
            scores_BM[:, num_results - 1] if is_full else np.full(num_requests, -np.inf, np.float32)
        )
        for rows_BT, scores_BT, numbers_BT in self._best(queries_QD, thresholds_B, num_results):
            rows_BM = np.concatenate([rows_BM, rows_BT], axis=1)
            scores_BM = np.concatenate([scores_BM, scores_BT], axis=1)
            numbers_BM = np.concatenate([numbers_BM, numbers_BT], axis=1)
        if rows_BM.shape[1] > num_results:
            order = np.argsort(-scores_BM, axis=1, kind="stable")[:, :num_results]
            rows_BM = np.take_along_axis(rows_BM, order, 1)
            scores_BM = np.take_along_axis(scores_BM, order, 1)
            numbers_BM = np.take_along_axis(numbers_BM, order, 1)
        return rows_BM, scores_BM, numbers_BM

    def _best(
        self, queries_QD: NDArray[np.float32], thresholds_B: NDArray[np.float32], num_results: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]:
        """Return live items by their best score of a request: rows, scores and interests, in parts."""
        if not self.num_visible:
            return []
        found = []
        exact_R = self._visible_slots
        index = self._index_for(self.num_visible)
        if index is not None:
            exact_R = exact_R[np.searchsorted(exact_R, index.num_rows) :]
            if self._is_index_intact:
                best = index.searcher.search_best(queries_QD, num_results)
            else:
                lists = self._indexed_lists(queries_QD, num_results, self.is_visible_R, needs_each_list=False)
                best = _best_of_lists(*lists, len(thresholds_B))
            if best is not None:
                slots, scores, numbers = best
                found.append((np.where(slots >= 0, slots + self.first_row, -1), scores, numbers))
        if len(exact_R):
            scores_QR = self._scores(queries_QD, exact_R)
            scores_BKR = scores_QR.reshape(len(thresholds_B), -1, len(exact_R))
            scores_BT, rows_BT, places = self._above(scores_BKR.max(axis=1), thresholds_B, exact_R)
            numbers_BT = np.zeros(rows_BT.shape, np.int64)
            requests, columns, slots = places
            numbers_BT[requests, columns] = scores_BKR[requests, :, slots].argmax(axis=1)
            found.append((rows_BT, scores_BT, numbers_BT))
        return found

    def _lists(
        self,
        queries_QD: NDArray[np.float32],
        thresholds_Q: NDArray[np.float32],
        num_results: int,
        allowed: AllowedItems | None,
        *,
        is_exact: bool,
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Return live items by their score of each query: scores and rows, in parts."""
        mask_R, exact_R = self.is_visible_R, self._visible_slots
        if allowed is not None:
            mask_R = allowed.mask_from(self.first_row, len(mask_R))
            exact_R = np.flatnonzero(mask_R)
        found = []
        index = None if is_exact else self._index_for(len(exact_R))
        if index is not None:
            exact_R = exact_R[np.searchsorted(exact_R, index.num_rows) :]
            scores_QS, slots_QS = self._indexed_lists(queries_QD, num_results, mask_R, needs_each_list=True)
            found.append((scores_QS, np.where(slots_QS >= 0, slots_QS + self.first_row, -1)))
        if len(exact_R):
            scores_QT, rows_QT, _ = self._above(self._scores(queries_QD, exact_R), thresholds_Q, exact_R)
            found.append((scores_QT, rows_QT))
        return found

    def _index_for(self, num_allowed: int) -> LiveIndex | None:
        """Return the index where it saves work among so many items; None where they are compared."""
        return self.index if num_allowed > MIN_ROWS else None

    def _indexed_lists(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        mask_R: NDArray[np.bool_],
        *,
        needs_each_list: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search the index among the slots of a mask: scores and slots."""
        assert self.index is not None
        bits = np.packbits(mask_R[: self.index.num_rows], bitorder="little")
        is_all = bool(mask_R[: self.index.num_rows].all())
        return self.index.searcher.search(
            queries_QD,
            num_results,
            needs_each_list=needs_each_list,
            selector=None if is_all else _faiss.IDSelectorBitmap(bits),
        )

    @cached_property
    def _visible_slots(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.is_visible_R)

    @cached_property
    def _is_index_intact(self) -> bool:
        """Whether every slot of the index is visible."""
        return self.index is not None and bool(self.is_visible_R[: self.index.num_rows].all())

    def _scores(self, queries_QD: NDArray[np.float32], slots_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compare some slots, ascending, one by one."""
        first, end = int(slots_R[0]), int(slots_R[-1]) + 1
        # A range is read where it lies; gathering many rows takes longer than the product.
        is_range = end - first == len(slots_R)
        vectors_RD = self.vectors_RD[first:end] if is_range else self.vectors_RD[slots_R]
        if len(queries_QD) > _MAX_THIN_QUERIES:
            return np.asarray(queries_QD @ vectors_RD.T)
        return np.ascontiguousarray((vectors_RD @ queries_QD.T).T)

    def _above(
        self,
        scores_QR: NDArray[np.float32],
        thresholds_Q: NDArray[np.float32],
        slots_R: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[NDArray[np.intp], ...]]:
        """Return scores and rows above each query's threshold, in the order of the slots.

        The last value has the query, the column and the place of each of them.
        """
        queries, places = np.nonzero(scores_QR > thresholds_Q[:, None])
        counts_Q = np.bincount(queries, minlength=len(scores_QR))
        width = int(counts_Q.max(initial=0))
        scores_QT = np.full((len(scores_QR), width), -np.inf, np.float32)
        rows_QT = np.full((len(scores_QR), width), -1, np.int64)
        columns = np.arange(len(queries)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
        scores_QT[queries, columns] = scores_QR[queries, places]
        rows_QT[queries, columns] = self.first_row + slots_R[places]
        return scores_QT, rows_QT, (queries, columns, places)


def _best_of_lists(
    scores_QS: NDArray[np.float32], slots_QS: NDArray[np.int64], num_requests: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return each item of a request's lists once, with its best score and interest; -1 at other places."""
    num_interests = len(scores_QS) // num_requests
    scores = scores_QS.reshape(num_requests, -1)
    slots = slots_QS.reshape(num_requests, -1)
    numbers = np.repeat(np.arange(num_interests), scores_QS.shape[1])[None].repeat(num_requests, axis=0)
    order = np.lexsort((numbers, -scores, slots), axis=1)
    scores, slots = np.take_along_axis(scores, order, 1), np.take_along_axis(slots, order, 1)
    numbers = np.take_along_axis(numbers, order, 1)
    is_again = np.zeros(slots.shape, np.bool_)
    is_again[:, 1:] = slots[:, 1:] == slots[:, :-1]
    return (
        np.where(is_again, -1, slots),
        np.where(is_again | (slots < 0), -np.inf, scores).astype(np.float32),
        numbers,
    )
