"""The live items as one batch of requests sees them. Immutable and thread-safe.

Legend: N items of the version, R slots of live items, Q queries (requests x interests), B requests,
K interests, D embedding, S results, T further results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from re4.bundle.scoring.rescoring import rescore
from re4.serving.retrieval.filters import MAX_EXACT_ROWS, AllowedItems, Condition
from re4.serving.retrieval.hidden_items import HiddenItems
from re4.serving.retrieval.live_items.attributes import LiveAttribute, LiveAttributes
from re4.serving.retrieval.live_items.graph import MIN_ROWS, LiveGraph
from re4.serving.retrieval.live_items.ids import LiveIds


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
    graph: LiveGraph | None
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
            has_R = attribute.have_any_S(condition.codes)
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
        num_interests: int,
        allowed: AllowedItems | None,
        is_exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best items of each query among those found in the version and all live items.

        Args:
            scores_QS: Of the version's items, best first.
            rows_QS: Their rows, -1 at the end where there are no more.
            queries_QD: The K of a request beside each other.
            num_results: How many each query wants.
            num_interests: K.
            allowed: The items that may be found; None for all visible ones.
            is_exact: Whether every live item is compared, however many there are.
        """
        if scores_QS.shape[1] < num_results:
            missing = ((0, 0), (0, num_results - scores_QS.shape[1]))
            scores_QS = np.pad(scores_QS, missing, constant_values=-np.inf)
            rows_QS = np.pad(rows_QS, missing, constant_values=-1)
        thresholds_Q = scores_QS[:, num_results - 1]
        for scores_QT, rows_QT in self._better(
            queries_QD, thresholds_Q, num_results, num_interests, allowed, is_exact=is_exact
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
        num_interests = len(queries_QD) // num_requests
        is_full = rows_BM.shape[1] >= num_results
        thresholds_B = (
            scores_BM[:, num_results - 1] if is_full else np.full(num_requests, -np.inf, np.float32)
        )
        thresholds_Q = np.repeat(thresholds_B, num_interests)
        parts = [(scores_BM, rows_BM, numbers_BM)]
        for scores_QT, rows_QT in self._better(queries_QD, thresholds_Q, num_results, num_interests, None):
            for number in range(num_interests):
                own = slice(number, None, num_interests)
                numbers = np.full(rows_QT[own].shape, number)
                parts.append((scores_QT[own], rows_QT[own], numbers))
        if len(parts) == 1:
            return rows_BM, scores_BM, numbers_BM
        scores, rows, numbers = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        # Of an item that several interests found, the best score counts, then the lowest interest.
        order = np.lexsort((numbers, rows, -scores), axis=1)
        scores, rows, numbers = (np.take_along_axis(each, order, 1) for each in (scores, rows, numbers))
        best = [_first_of_each_row(rows[place], num_results) for place in range(num_requests)]
        shape = (num_requests, max(map(len, best)))
        found_rows, found_numbers = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        found_scores = np.full(shape, -np.inf, np.float32)
        for place, places in enumerate(best):
            found_rows[place, : len(places)] = rows[place, places]
            found_scores[place, : len(places)] = scores[place, places]
            found_numbers[place, : len(places)] = numbers[place, places]
        return found_rows, found_scores, found_numbers

    def _better(
        self,
        queries_QD: NDArray[np.float32],
        thresholds_Q: NDArray[np.float32],
        num_results: int,
        num_interests: int,
        allowed: AllowedItems | None,
        *,
        is_exact: bool = False,
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Return live items with scores above a threshold of each query: the best, and perhaps others."""
        mask_R = self.is_visible_R
        if allowed is not None:
            mask_R = allowed.mask_from(self.first_row, len(mask_R))
        num_allowed = int(np.count_nonzero(mask_R))
        if not num_allowed:
            return []
        if self.graph is None or is_exact or num_allowed <= MIN_ROWS:
            slots = np.flatnonzero(mask_R) if num_allowed < len(mask_R) else np.arange(len(mask_R))
            return [self._exact(queries_QD, thresholds_Q, slots)]
        num_in_graph = self.graph.num_rows
        is_all = bool(mask_R[:num_in_graph].all())
        scores_QS, slots_QS = self.graph.search(queries_QD, num_results, None if is_all else mask_R)
        shape = (-1, num_interests, slots_QS.shape[1])
        pool = rescore(
            scores_QS.reshape(shape),
            slots_QS.reshape(shape),
            queries_QD.reshape(-1, num_interests, queries_QD.shape[1]),
            self.vectors_RD,
            num_interests * slots_QS.shape[1],
        )
        slots_QP = np.repeat(pool.rows_BP, num_interests, axis=0)
        found = [self._above(pool.scores_BKP.reshape(slots_QP.shape), thresholds_Q, slots_QP)]
        newer = num_in_graph + np.flatnonzero(mask_R[num_in_graph:])
        if len(newer):
            found.append(self._exact(queries_QD, thresholds_Q, newer))
        return found

    def _exact(
        self,
        queries_QD: NDArray[np.float32],
        thresholds_Q: NDArray[np.float32],
        slots_R: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compare some slots, ascending, one by one."""
        first, end = int(slots_R[0]), int(slots_R[-1]) + 1
        # A range is read where it lies; gathering many rows takes longer than the product.
        vectors_RD = self.vectors_RD[first:end] if end - first == len(slots_R) else self.vectors_RD[slots_R]
        return self._above(queries_QD @ vectors_RD.T, thresholds_Q, slots_R[None])

    def _above(
        self,
        scores_QR: NDArray[np.float32],
        thresholds_Q: NDArray[np.float32],
        slots_QR: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores and rows above each query's threshold, in the order of the slots."""
        queries, places = np.nonzero(scores_QR > thresholds_Q[:, None])
        counts_Q = np.bincount(queries, minlength=len(scores_QR))
        width = int(counts_Q.max(initial=0))
        scores_QT = np.full((len(scores_QR), width), -np.inf, np.float32)
        rows_QT = np.full((len(scores_QR), width), -1, np.int64)
        columns = np.arange(len(queries)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
        scores_QT[queries, columns] = scores_QR[queries, places]
        slots = slots_QR[0, places] if len(slots_QR) == 1 else slots_QR[queries, places]
        rows_QT[queries, columns] = self.first_row + slots
        return scores_QT, rows_QT


def _first_of_each_row(rows: NDArray[np.int64], num_wanted: int) -> NDArray[np.int64]:
    """Return the place of the first entry of each row, in order, at most so many; without row -1."""
    _, firsts = np.unique(rows, return_index=True)
    firsts = np.sort(firsts)
    return np.asarray(firsts[rows[firsts] >= 0][:num_wanted])
