"""The live items of one version, change by change. Belongs to the event loop; its views may be shared.

Each change of an item fills a new slot, so that a view that is in use never changes. Slots that later changes
replaced are dropped when they are as many as the others.

Legend: N items of the version, R slots, D embedding.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attributes
from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import IS_COLD
from re4.bundle.live_items.records import Change, Evidence, Record, Upsert
from re4.bundle.live_items.state import LiveState, SummedEvidence, as_kind
from re4.bundle.titles import title_among
from re4.serving.retrieval.indexes.remote_vectors import ItemVectors
from re4.serving.retrieval.live_items.attributes import LiveAttributes, LiveColumn
from re4.serving.retrieval.live_items.exact_scan import open_item_codes
from re4.serving.retrieval.live_items.growing import GrowingArray
from re4.serving.retrieval.live_items.ids import LiveIds, SlotMap
from re4.serving.retrieval.live_items.index import MIN_NEWER_ROWS, MIN_ROWS, LiveIndex, LiveIndexMaker
from re4.serving.retrieval.live_items.starting_vectors import StartingVectors
from re4.serving.retrieval.live_items.view import LiveItems

_ROW_MULTIPLE: Final = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexJob:
    """An index to make beside the calls."""

    maker: LiveIndexMaker
    vectors_RD: NDArray[np.float32]
    start: LiveIndex | None
    slots: NDArray[np.int64] | None
    """The slots to keep, where others are dropped with the new index; None for all."""
    num_slots: int
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> LiveIndex:
        """Make the index, in a thread."""
        return self.maker.grow(self.start, self.vectors_RD, self.cancelled)


class LiveOverlay:
    """The live items of a version."""

    def __init__(
        self,
        *,
        item_ids: ItemIds,
        attributes: Attributes,
        vectors_ND: ItemVectors,
        starting_vectors: StartingVectors,
        space: str,
        live_sequence: int,
        lineage: Mapping[str, object],
        index_maker: LiveIndexMaker | None = None,
    ) -> None:
        """Start with no live item.

        Args:
            item_ids: The version's ids.
            attributes: Its attributes.
            vectors_ND: Its item vectors.
            starting_vectors: Makes vectors for live items without one.
            space: Fingerprint of its embedding space.
            live_sequence: Changes up to this one are part of the version.
            lineage: Of its manifest.
            index_maker: Makes indexes of live items; None to compare them one by one, however many.
        """
        self._index_maker = index_maker
        self._item_ids = item_ids
        self._attributes = attributes
        self._vectors_ND = vectors_ND
        self._fetched: Mapping[int, NDArray[np.float32]] = {}
        """Vectors of rows of the version, where those are on another machine."""
        self._starting_vectors = starting_vectors
        self._space = space
        self._live_sequence = live_sequence
        self._lineage = lineage
        self._num_items = len(vectors_ND)
        self._first_row = -(-self._num_items // _ROW_MULTIPLE) * _ROW_MULTIPLE
        self._columns = {name: LiveColumn(attributes[name]) for name in attributes.names}
        self._slots = SlotMap()
        self._ids: list[Any] = []
        self._titles: list[str] = []
        """Titles that came with the changes; empty where the version's stays."""
        self._has_titles = False
        self._vectors = GrowingArray(np.float32, vectors_ND.shape[1])
        self._codes = open_item_codes(vectors_ND.shape[1])
        """Codes of the vectors, for the compiled comparison; None without a compiler."""
        self._priors = GrowingArray(np.float32, vectors_ND.shape[1])
        """Vectors before the evidence of users."""
        self._folds = GrowingArray(np.bool_)
        """Whether evidence counts: the item was not trained, and has no vector of its own."""
        self._is_visible = GrowingArray(np.bool_)
        self._is_newest = GrowingArray(np.bool_)
        """Whether the slot holds the present state of an item that is not removed."""
        self._replaced_N: NDArray[np.bool_] | None = None
        self._is_shared = False
        """Whether a view has that mask."""
        self._removed: set[Any] = set()
        self._evidence = LiveState()
        self._touched: dict[Any, int] = {}
        """Rows of the items whose newest evidence does not count yet."""
        self._hidden: set[Any] = set()
        self._index: LiveIndex | None = None
        self._num_dead = 0
        self._cold_code: tuple[int, ...] = ()
        if IS_COLD in attributes:
            self._cold_code = tuple(attributes[IS_COLD].value_codes(["true"]).tolist())
        self.sequence = 0

    @property
    def num_slots(self) -> int:
        """Slots in use, with those that later changes replaced."""
        return len(self._ids)

    def hide(self, hidden: HiddenIds) -> None:
        """Leave these items out of every later view, and no others."""
        now = set(hidden.of_kind(self._item_ids.kind))
        for id_ in now ^ self._hidden:
            slot = self._slots.get(id_)
            if slot is not None:
                self._show(slot, self._is_newest.view()[slot] and id_ not in now)
        self._hidden = now

    def fetch_vectors(self, records: Sequence[Record]) -> None:
        """Fetch what `apply` reads of item vectors on another machine, in another thread than the calls'.

        Raises:
            IndexUnavailableError: that machine does not answer.
        """
        needing = [record.change for record in records if self._needs_vector(record.change)]
        ids: list[Any] = [as_kind(change.id, self._item_ids.kind) for change in needing]
        rows_R = np.unique(self._item_ids.rows([id_ for id_ in ids if id_ is not None]))
        rows_R = rows_R[rows_R >= 0]
        self._fetched = dict(zip(rows_R.tolist(), self._vectors_ND.take(rows_R, axis=0), strict=True))
        if needing:
            self._starting_vectors.read_vectors()

    def forget_fetched(self) -> None:
        """Free what `fetch_vectors` fetched."""
        self._fetched = {}

    def _needs_vector(self, change: Change) -> bool:
        if isinstance(change, Evidence):
            return change.space == self._space
        return isinstance(change, Upsert) and self._given_vector(change) is None

    def _given_vector(self, change: Upsert) -> NDArray[np.float32] | None:
        """Return the vector that came with a change; None for none, or one of another version's space."""
        given_D = change.vector_D if change.space == self._space else None
        return None if given_D is None or len(given_D) != self._vectors_ND.shape[1] else given_D

    def _vector_of_row(self, row: int) -> NDArray[np.float32]:
        vector_D = self._fetched.get(row)
        return self._vectors_ND[row] if vector_D is None else vector_D

    def apply(self, records: Sequence[Record], *, folds_in: bool = True) -> None:
        """Apply changes, in the order of their sequence numbers.

        Args:
            records: The changes.
            folds_in: Whether to move the items that users touched; otherwise call `fold_in`.
        """
        kind = self._item_ids.kind
        own = [(as_kind(record.change.id, kind), record) for record in records]
        ids: list[Any] = [id_ for id_, _ in own if id_ is not None]
        rows = self._item_ids.rows(ids)
        places = iter(rows.tolist())
        for id_, record in own:
            self.sequence = max(self.sequence, record.sequence)
            change = record.change
            if id_ is None:  # an id that no catalogue of this kind has
                self._evidence.num_events += change.num_events if isinstance(change, Evidence) else 0
                continue
            row = next(places)
            if isinstance(change, Evidence):
                self._evidence.apply([record._replace(change=replace(change, id=id_))])
                if change.space == self._space:
                    self._touched[id_] = row
            elif record.sequence > self._live_sequence:
                if isinstance(change, Upsert):
                    self._upsert(id_, row, change)
                else:
                    self._removed.add(id_)
                    self._retire(id_, row)
        if folds_in:
            self.fold_in(len(self._touched))

    def fold_in(self, most: int) -> int:
        """Move at most so many of the items that users touched, and return the number of the others."""
        for id_ in list(islice(self._touched, most)):
            self._fold_in(id_, self._touched.pop(id_))
        return len(self._touched)

    def _upsert(self, id_: Any, row: int, change: Upsert) -> None:
        values = dict(change.attributes)
        given_D = self._given_vector(change)
        folds = False
        if given_D is not None:
            prior_D = vector_D = given_D
        elif row >= 0 and not self._is_cold(row):
            prior_D = vector_D = self._vector_of_row(row)
        else:
            folds = True
            prior_D = self._starting_vectors.from_attributes(values)
            vector_D = self._starting_vectors.folded_in(prior_D, self._evidence_of(id_))
        self._removed.discard(id_)
        if IS_COLD in self._columns:
            values[IS_COLD] = ("true" if folds else "false",)
        codes = {name: column.codes_for(values.get(name, ())) for name, column in self._columns.items()}
        title = title_among(change.attributes, self._lineage)
        self._fill(id_, row, vector_D, prior_D, codes, title, folds=folds)

    def _fold_in(self, id_: Any, row: int) -> None:
        """Give an item that was not trained the vector by all of its evidence."""
        slot, title = self._slots.get(id_), ""
        if slot is None:
            if row < 0 or id_ in self._removed or not self._is_cold(row):
                return
            prior_D = self._vector_of_row(row)
            codes = {
                name: column.codes_for(column.values_of_row(row)) for name, column in self._columns.items()
            }
        elif not self._folds.view()[slot] or not self._is_newest.view()[slot]:
            return
        else:
            prior_D = self._priors.view()[slot]
            codes = {name: column.codes_of_slot(slot) for name, column in self._columns.items()}
            title = self._titles[slot]
        vector_D = self._starting_vectors.folded_in(prior_D, self._evidence_of(id_))
        self._fill(id_, row, vector_D, prior_D, codes, title, folds=True)

    def _fill(
        self,
        id_: Any,
        row: int,
        vector_D: NDArray[np.float32],
        prior_D: NDArray[np.float32],
        codes: dict[str, NDArray[np.int64]],
        title: str,
        *,
        folds: bool,
    ) -> None:
        """Fill the next slot with the present state of an item."""
        self._retire(id_, row)
        for name, column in self._columns.items():
            column.append(codes[name])
        self._slots.set(id_, len(self._ids))
        self._ids.append(id_)
        self._titles.append(title)
        self._has_titles |= bool(title)
        self._vectors.append(np.asarray(vector_D)[None])
        if self._codes is not None:
            self._codes.append(self._vectors.view()[-1:])
        self._priors.append(np.asarray(prior_D)[None])
        self._folds.append(np.array([folds]))
        self._is_visible.append(np.array([id_ not in self._hidden]))
        self._is_newest.append(np.array([True]))

    def _retire(self, id_: Any, row: int) -> None:
        """Leave the present state of an item out of every later view."""
        slot = self._slots.get(id_)
        if slot is not None and self._is_newest.view()[slot]:
            self._is_newest.view()[slot] = False
            self._show(slot, False)
            self._num_dead += 1
        if row >= 0 and (self._replaced_N is None or not self._replaced_N[row]):
            replaced_N = np.zeros(self._num_items, np.bool_) if self._replaced_N is None else self._replaced_N
            self._replaced_N = replaced_N.copy() if self._is_shared else replaced_N
            self._is_shared = False
            self._replaced_N[row] = True

    def _show(self, slot: int, is_visible: bool) -> None:
        self._is_visible.view()[slot] = is_visible

    def _evidence_of(self, id_: Any) -> SummedEvidence | None:
        return self._evidence.evidence.get((id_, self._space))

    def _is_cold(self, row: int) -> bool:
        """Return whether an item of the version was not trained."""
        if not self._cold_code or self._cold_code[0] < 0:
            return False
        codes, _ = self._attributes[IS_COLD].codes_of(np.array([row]))
        return self._cold_code[0] in codes.tolist()

    def view(self) -> LiveItems | None:
        """Return the live items as they are now; None where no change counts for the version."""
        if not self._ids and self._replaced_N is None:
            return None
        self._is_shared = True
        num_rows = len(self._ids)
        slots = self._slots.frozen()
        is_newest_R = self._is_newest.view()
        is_visible_R = self._is_visible.view().copy()
        return LiveItems(
            num_items=self._num_items,
            first_row=self._first_row,
            item_ids=LiveIds(self._item_ids, slots, self._ids, first_row=self._first_row, num_rows=num_rows),
            attributes=LiveAttributes(self._columns, self._first_row),
            vectors_RD=self._vectors.view(),
            scan=None if self._codes is None else self._codes.view(),
            is_visible_R=is_visible_R,
            replaced_N=self._replaced_N,
            index=self._index,
            folds_R=self._folds.view(),
            num_hidden=int(np.count_nonzero(is_newest_R & ~is_visible_R)),
            sequence=self.sequence,
            titles=self._titles,
            has_titles=self._has_titles,
        )

    def next_job(self) -> IndexJob | None:
        """Return the index to make now; None where there is none. Drops slots where no index is needed."""
        num_alive = len(self._ids) - self._num_dead
        maker, slots = self._index_maker, None
        if self._num_dead > max(MIN_ROWS, num_alive):
            slots = np.flatnonzero(self._is_newest.view())
            if maker is None or len(slots) <= MIN_ROWS:
                self._renumber(slots, None)
                return None
        num_indexed = 0 if self._index is None else self._index.num_rows
        num_newer = len(self._ids) - num_indexed
        is_small = num_alive <= MIN_ROWS or num_newer <= max(MIN_NEWER_ROWS, num_indexed // 32)
        if maker is None or (slots is None and is_small):
            return None
        vectors_RD = self._vectors.view()
        return IndexJob(
            maker=maker,
            vectors_RD=vectors_RD if slots is None else vectors_RD[slots],
            start=self._index if slots is None else None,
            slots=slots,
            num_slots=len(self._ids),
        )

    def finish(self, job: IndexJob, index: LiveIndex) -> None:
        """Search with a new index from the next view on."""
        if job.slots is None:
            self._index = index
            return
        later = np.arange(job.num_slots, len(self._ids))
        self._renumber(np.concatenate([job.slots, later]), index)

    def _renumber(self, slots: NDArray[np.int64], index: LiveIndex | None) -> None:
        """Keep these slots, in this order. Views that are in use keep the others."""
        now = SlotMap()
        is_last = {}
        for new, old in enumerate(slots.tolist()):
            is_last[self._ids[old]] = new
        for id_, slot in is_last.items():
            now.set(id_, slot)
        for name in ("_vectors", "_priors", "_folds", "_is_visible", "_is_newest"):
            old_array: GrowingArray = getattr(self, name)
            kept = old_array.view()[slots]
            array = GrowingArray(kept.dtype, kept.shape[1] if kept.ndim > 1 else None)
            array.append(kept)
            setattr(self, name, array)
        if self._codes is not None:
            self._codes = self._codes.renumber(self._vectors.view())
        for column in self._columns.values():
            column.renumber(slots)
        self._ids = [self._ids[slot] for slot in slots.tolist()]
        self._titles = [self._titles[slot] for slot in slots.tolist()]
        self._slots, self._index = now, index
        self._num_dead = int(np.count_nonzero(~self._is_newest.view()))
