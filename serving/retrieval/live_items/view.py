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

from re4.common.list_scan import FurtherItems
from re4.serving.retrieval.filters import MAX_EXACT_ROWS, AllowedItems, Condition
from re4.serving.retrieval.hidden_items import HiddenItems
from re4.serving.retrieval.live_items.attributes import LiveAttribute, LiveAttributes
from re4.serving.retrieval.live_items.exact_scan import ExactScan
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
    scan: ExactScan | None
    """The compiled comparison one by one; None where NumPy compares."""
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
    titles: Sequence[str]
    """At least R: titles that came with the changes; empty where the version's stays."""
    has_titles: bool

    @cached_property
    def num_visible(self) -> int:
        """Live items that answers may contain."""
        return int(np.count_nonzero(self.is_visible_R))

    @cached_property
    def is_hidden_R(self) -> NDArray[np.bool_] | None:
        """Slots that no answer may contain; None for none."""
        return None if self.is_visible_R.all() else ~self.is_visible_R

    @cached_property
    def indexed_items(self) -> tuple[FurtherItems, NDArray[np.float32]] | None:
        """The lists of the index, to be read with those of the version, and the vectors.

        None where items are compared one by one, and where FAISS searches the index.
        """
        index = self._index_for(self.num_visible)
        if index is None or (scan := index.searcher.list_scan) is None:
            return None
        return FurtherItems(scan, self.first_row, self.is_hidden_R), self.vectors_RD

    @cached_property
    def num_replaced(self) -> int:
        """Rows of the version that no answer may contain because of a change."""
        return 0 if self.replaced_N is None else int(np.count_nonzero(self.replaced_N))

    def visible_rows(self) -> NDArray[np.int64]:
        """Return the rows of live items that answers may contain, ascending."""
        return self.first_row + np.flatnonzero(self.is_visible_R)

    def without_hidden(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the version, and those of live items that answers may contain."""
        is_kept = rows < self.num_items
        is_kept[~is_kept] = self.is_visible_R[rows[~is_kept] - self.first_row]
        return rows[is_kept]

    def num_visible_among(self, rows: NDArray[np.int64]) -> int:
        """Return how many of some rows, the version's or live ones, answers may contain.

        No row of the version is hidden or replaced.
        """
        if not len(rows):
            return 0
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
        mask_R, num_allowed = self.is_visible_R, self.num_visible
        if allowed is not None:
            mask_R = allowed.mask_from(self.first_row, len(mask_R))
            num_allowed = int(np.count_nonzero(mask_R))
        start, index = 0, None if is_exact else self._index_for(num_allowed)
        if index is not None:
            start = index.num_rows
            found_QT, slots_QT = self._indexed_lists(queries_QD, num_results, mask_R, needs_each_list=True)
            rows_QT = np.where(slots_QT >= 0, slots_QT + self.first_row, -1)
            rows_QS, scores_QS = _best_of_both(rows_QS, scores_QS, rows_QT, found_QT, num_results)
        rows_QS = np.ascontiguousarray(rows_QS[:, :num_results])
        scores_QS = np.ascontiguousarray(scores_QS[:, :num_results])
        if num_allowed:
            is_hidden_R = self.is_hidden_R if allowed is None else ~mask_R
            self._compare(rows_QS, scores_QS, None, queries_QD[:, None], start, is_hidden_R)
        return scores_QS, rows_QS

    def merge_best(
        self,
        rows_BM: NDArray[np.int64],
        scores_BM: NDArray[np.float32],
        numbers_BM: NDArray[np.int64],
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        is_index_searched: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return the best items by maximum score, as `re4.bundle.scoring.rescoring.best_candidates`.

        Args:
            rows_BM: The best items of each request among those searched before.
            scores_BM: Their scores, best first.
            numbers_BM: Their interests.
            queries_QD: The K interests of a request beside each other.
            num_results: How many each request wants.
            is_index_searched: Whether the `indexed_items` were searched before.
        """
        num_missing = num_results - rows_BM.shape[1]
        if num_missing > 0:
            missing = ((0, 0), (0, num_missing))
            rows_BM = np.pad(rows_BM, missing, constant_values=-1)
            scores_BM = np.pad(scores_BM, missing, constant_values=-np.inf)
            numbers_BM = np.pad(numbers_BM, missing)
        index = self._index_for(self.num_visible)
        if index is not None and not is_index_searched:
            if self._is_index_intact:
                best = index.searcher.search_best(queries_QD, num_results)
                assert best is not None
            else:
                lists = self._indexed_lists(queries_QD, num_results, self.is_visible_R, needs_each_list=False)
                best = _best_of_lists(*lists, len(rows_BM))
            slots_BT, scores_BT, numbers_BT = best
            rows_BT = np.where(slots_BT >= 0, slots_BT + self.first_row, -1)
            numbers_BM = np.concatenate([numbers_BM, numbers_BT], axis=1)
            rows_BM, scores_BM, numbers_BM = _best_of_both(
                rows_BM, scores_BM, rows_BT, scores_BT, num_results, numbers_BM
            )
        if self.num_visible:
            interests_BKD = queries_QD.reshape(len(rows_BM), -1, queries_QD.shape[1])
            rows_BM, scores_BM, numbers_BM = map(np.ascontiguousarray, (rows_BM, scores_BM, numbers_BM))
            start = 0 if index is None else index.num_rows
            self._compare(rows_BM, scores_BM, numbers_BM, interests_BKD, start, self.is_hidden_R)
        return rows_BM, scores_BM, numbers_BM

    def _compare(
        self,
        rows_BM: NDArray[np.int64],
        scores_BM: NDArray[np.float32],
        numbers_BM: NDArray[np.int64] | None,
        interests_BKD: NDArray[np.float32],
        start: int,
        is_hidden_R: NDArray[np.bool_] | None,
    ) -> None:
        """Put live items from a slot on into lists, one by one: see `ExactScan.merge_into`."""
        if start == len(self.vectors_RD):
            return
        if self.scan is not None:
            self.scan.merge_into(
                rows_BM,
                scores_BM,
                numbers_BM,
                np.ascontiguousarray(interests_BKD),
                self.vectors_RD,
                start=start,
                is_hidden_R=is_hidden_R,
                first_row=self.first_row,
            )
            return
        slots_R = np.arange(start, len(self.vectors_RD))
        if is_hidden_R is not None:
            slots_R = slots_R[~is_hidden_R[start:]]
        if not len(slots_R):
            return
        num_lists, num_interests, embedding_dim = interests_BKD.shape
        scores_QR = self._scores(interests_BKD.reshape(-1, embedding_dim), slots_R)
        scores_BKR = scores_QR.reshape(num_lists, num_interests, -1)
        scores_BT, rows_BT, places = self._above(scores_BKR.max(axis=1), scores_BM[:, -1], slots_R)
        numbers = None
        if numbers_BM is not None:
            numbers_BT = np.zeros(rows_BT.shape, np.int64)
            lists, columns, slots = places
            numbers_BT[lists, columns] = scores_BKR[lists, :, slots].argmax(axis=1)
            numbers = np.concatenate([numbers_BM, numbers_BT], axis=1)
        found = _best_of_both(rows_BM, scores_BM, rows_BT, scores_BT, rows_BM.shape[1], numbers)
        rows_BM[:], scores_BM[:] = found[:2]
        if numbers_BM is not None:
            numbers_BM[:] = found[2]

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


def _best_of_both(
    rows_BM: NDArray[np.int64],
    scores_BM: NDArray[np.float32],
    rows_BT: NDArray[np.int64],
    scores_BT: NDArray[np.float32],
    num_results: int,
    *numbers: NDArray[np.int64] | None,
) -> tuple[Any, ...]:
    """Return the best of two lists for each request: rows, scores, and the numbers of both, where given."""
    rows, scores = np.concatenate([rows_BM, rows_BT], axis=1), np.concatenate([scores_BM, scores_BT], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num_results]
    return tuple(np.take_along_axis(each, order, 1) for each in (rows, scores, *numbers) if each is not None)


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
