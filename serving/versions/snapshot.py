"""A loaded version: one reference to everything that an answer is made from.

Loading opens files with parsers. So a version is verified byte by byte before (`bundle/verify.py`), and its
very first load happens in a child process (`re4.serving.versions.version_check`).

Legend: N items, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import open_array
from re4.bundle.attributes.reader import Attributes
from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import ENCODER, INDEX, IS_COLD, POPULAR, VECTORS
from re4.bundle.live_items.records import Record
from re4.bundle.manifest import IndexInfo, Manifest
from re4.bundle.milvus.collection_index import CollectionIndex
from re4.bundle.titles import Titles
from re4.common.errors import BundleDamagedError, BundleMismatchError
from re4.serving.retrieval.devices.backend import CpuBackend, DeviceBackend
from re4.serving.retrieval.encoder import Encoder, bucket_sizes
from re4.serving.retrieval.filter_cache import FilterCache
from re4.serving.retrieval.hidden_items import HiddenItems
from re4.serving.retrieval.indexes.expressions import CollectionFilters
from re4.serving.retrieval.indexes.kinds import KINDS, IndexKind, SearchPlan, scaled
from re4.serving.retrieval.indexes.remote_index import RemoteIndex
from re4.serving.retrieval.indexes.remote_vectors import ItemVectors, RemoteVectors
from re4.serving.retrieval.live_items.index import LiveIndexMaker
from re4.serving.retrieval.live_items.overlay import LiveOverlay
from re4.serving.retrieval.live_items.starting_vectors import StartingVectors
from re4.serving.retrieval.live_items.view import LiveItems
from re4.serving.retrieval.pipeline import Pipeline
from re4.serving.retrieval.search import Searcher

PlanAt: TypeAlias = Callable[[float], SearchPlan | None]

INDEX_TIMEOUT_S: Final = 10.0
"""Longest search of an index on another machine, where no server sets it."""

_SIGNATURE_BYTES: Final = 4
_MAX_TABLE_BYTES: Final = 1 << 26
"""Enough for 16,384 lists of 64 codes."""
_NUM_NEIGHBOURS: Final = 32
"""Of the graph of live items."""
_MAX_LOOPS: Final = 1 << 20
"""Sub-structures (such as nested indexes) that FAISS may read from one file."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One loaded version: immutable, and shared by every call that it answers."""

    path: Path
    manifest: Manifest
    item_ids: ItemIds
    attributes: Attributes
    titles: Titles | None
    """Titles of the version's items; None where it has none."""
    filter_cache: FilterCache
    vectors_ND: ItemVectors
    """Memory-mapped, so that processes on one machine share the pages; or in the collection."""
    popular_rows: NDArray[np.int64]
    """Rows of the most popular items, most popular first."""
    pipeline: Pipeline
    starting_vectors: StartingVectors
    """Makes vectors of live items."""
    index_maker: LiveIndexMaker | None
    """Makes indexes of live items; None for a version whose index is exact, or on another machine."""
    hidden: HiddenItems | None = None
    """Hidden items of the version; None for none."""
    live: LiveItems | None = None
    """Live items; None for none."""
    is_canary: bool = False
    """Whether it answers beside the live version."""
    loaded: "Snapshot | None" = None
    """The version as it was loaded; None where this is it."""

    @property
    def is_index_remote(self) -> bool:
        """Whether the index is on another machine, so that a search waits for it."""
        return self.manifest.index.collection is not None

    @property
    def are_vectors_remote(self) -> bool:
        """Whether the item vectors are on another machine, so that to read one waits for it."""
        return isinstance(self.vectors_ND, RemoteVectors)

    @property
    def index_failure(self) -> str:
        """Why the index cannot be searched; empty where it can."""
        return self.pipeline.index_failure

    @property
    def num_items(self) -> int:
        """Items that the version and its live items have, hidden ones too."""
        num_items = self.manifest.items.num_items
        if self.live is None:
            return num_items
        return num_items - self.live.num_replaced + self.live.num_visible + self.live.num_hidden

    def vectors_of(self, rows_R: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of items, the version's or live ones; any vector for a row of -1."""
        vectors_RD = self.vectors_ND.take(np.where(rows_R < len(self.vectors_ND), rows_R, 0), axis=0)
        if self.live is not None:
            self.live.replace_vectors(vectors_RD, rows_R)
        return vectors_RD

    @property
    def has_titles(self) -> bool:
        """Whether any item has a title."""
        return self.titles is not None or (self.live is not None and self.live.has_titles)

    def title_of(self, row: int) -> str:
        """Return the title of an item, the version's or a live one; empty where it has none."""
        if self.live is not None and row >= self.live.first_row:
            if title := self.live.titles[row - self.live.first_row]:
                return title
            ids: Any = self.item_ids.ids(np.array([row]))
            row = int((self.loaded or self).item_ids.rows(ids)[0])
        return "" if self.titles is None or row < 0 else self.titles.title(row)

    def is_untrained(self, rows_R: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which items get better with recorded events: bool [R]; False for row -1."""
        is_untrained_R = np.zeros(len(rows_R), np.bool_)
        loaded = self.loaded or self
        of_version_R = (rows_R >= 0) & (rows_R < len(self.vectors_ND))
        if IS_COLD in loaded.attributes and of_version_R.any():
            is_cold = loaded.attributes[IS_COLD]
            codes = [code for code in is_cold.value_codes(["true"]).tolist() if code >= 0]
            is_untrained_R[of_version_R] = is_cold.have_any(rows_R[of_version_R], codes)
        if self.live is not None:
            is_live_R = rows_R >= self.live.first_row
            is_untrained_R[is_live_R] = self.live.folds_R[rows_R[is_live_R] - self.live.first_row]
        return is_untrained_R

    def with_hidden(self, hidden: HiddenIds) -> "Snapshot":
        """Return the same version without these items in any answer, and no others. Loads nothing.

        The view of live items must leave them out itself (`LiveOverlay.hide`).
        """
        loaded = self.loaded or self
        rows = HiddenItems.of(hidden, loaded.item_ids, self.manifest.items.num_items)
        if rows is None and self.hidden is None:
            return self
        return loaded._with_changes(rows, self.live)

    def with_live(self, live: LiveItems | None) -> "Snapshot":
        """Return the same version with these live items, and no others. Loads nothing."""
        return (self.loaded or self)._with_changes(self.hidden, live)

    def with_changes(self, hidden: HiddenIds, changes: Sequence[Record]) -> "Snapshot":
        """Return the same version with these hidden items and these changes of items, and no others."""
        overlay = self.new_overlay()
        overlay.hide(hidden)
        overlay.apply(changes)
        return self.with_hidden(hidden).with_live(overlay.view())

    def new_overlay(self) -> LiveOverlay:
        """Return the overlay of this version without any live item."""
        loaded = self.loaded or self
        return LiveOverlay(
            item_ids=loaded.item_ids,
            attributes=loaded.attributes,
            vectors_ND=loaded.vectors_ND,
            starting_vectors=self.starting_vectors,
            space=self.manifest.items.space,
            live_sequence=self.manifest.live_sequence,
            lineage=self.manifest.lineage,
            index_maker=self.index_maker,
        )

    def _with_changes(self, hidden: HiddenItems | None, live: LiveItems | None) -> "Snapshot":
        if hidden is None and live is None:
            return self
        all_hidden = hidden if live is None else live.hidden_over(hidden)
        filter_cache = self.filter_cache.with_changes(all_hidden, live)
        return replace(
            self,
            filter_cache=filter_cache,
            pipeline=self.pipeline.with_filter_cache(filter_cache),
            item_ids=self.item_ids if live is None else live.item_ids,
            attributes=self.attributes if live is None else live.attributes,
            hidden=hidden,
            live=live,
            loaded=self,
        )


def load_snapshot(
    path: Path,
    manifest: Manifest,
    *,
    max_batch_size: int,
    backend: DeviceBackend | None = None,
    index_timeout_s: float = INDEX_TIMEOUT_S,
    maps_vectors: bool = True,
) -> Snapshot:
    """Load a version whose every byte was verified, and run the encoder once at each batch size.

    Args:
        path: The version's folder.
        manifest: Its manifest.
        max_batch_size: Largest batch that the pipeline will be given.
        backend: The device; None for the CPU.
        index_timeout_s: Longest search of an index on another machine. That machine may be away now: then
            searches fail until it is back.
        maps_vectors: Whether to map the item vectors from their file also where the index is on another
            machine, which has them as well.

    Raises:
        BundleDamagedError: a parser refuses a file.
        BundleMismatchError: the parts do not fit together, or this server does not allow one of them.
    """
    num_items, embedding_dim = manifest.items.num_items, manifest.model.embedding_dim
    item_ids = ItemIds.open(path, manifest.items.id_kind, num_items)
    popular_rows = open_array(path / POPULAR, "<i8", (None,))
    if popular_rows.size and not 0 <= popular_rows.min() <= popular_rows.max() < num_items:
        raise BundleMismatchError(
            f"{path / POPULAR}: rows from {popular_rows.min()} to {popular_rows.max()}, the version has "
            f"{num_items} items"
        )
    attributes = Attributes.open(path, manifest.items.attributes, num_items)
    filter_cache = FilterCache(attributes, num_items)
    backend = backend or CpuBackend()
    encoder = backend.encoder(
        lambda providers: Encoder(
            (path / ENCODER).read_bytes(),
            manifest.model,
            max_batch_size=max_batch_size,
            where=str(path / ENCODER),
            providers=providers,
        )
    )
    vectors_ND: ItemVectors
    if (collection := manifest.index.collection) is not None:
        index = RemoteIndex(CollectionIndex(collection, num_items, embedding_dim), timeout_s=index_timeout_s)
        vectors_ND = _map_vectors(path, manifest) if maps_vectors else RemoteVectors(index)
        searcher = _collection_searcher(index, manifest, vectors_ND, attributes)
    else:
        mapped_ND = vectors_ND = _map_vectors(path, manifest)
        searcher = _open_searcher(path / INDEX, manifest, mapped_ND)
        query_counts = tuple(size * manifest.model.num_interests for size in bucket_sizes(max_batch_size))
        searcher.convert_index(
            lambda index: backend.index(index, vectors_ND=mapped_ND, query_counts=query_counts)
        )
    encoder.warm()
    return Snapshot(
        path=path,
        manifest=manifest,
        item_ids=item_ids,
        attributes=attributes,
        titles=Titles.open(path, num_items),
        filter_cache=filter_cache,
        vectors_ND=vectors_ND,
        popular_rows=popular_rows,
        pipeline=Pipeline(
            vectors_ND=vectors_ND,
            encoder=encoder,
            searcher=searcher,
            filter_cache=filter_cache,
            max_history_length=manifest.model.max_history_length,
        ),
        starting_vectors=StartingVectors.open(path, manifest, attributes, vectors_ND),
        index_maker=_live_index_maker(path / INDEX, manifest),
    )


def _plans(where: Path, info: IndexInfo) -> tuple[IndexKind, SearchPlan | None, PlanAt]:
    """Return the kind of an index, its plan, and what makes the plan of another effort."""
    kind = KINDS.get(info.kind)
    if kind is None or (info.collection is not None) == bool(kind.signatures):
        raise BundleMismatchError(
            f"{where}: of the kind {info.kind!r}; this server may load {', '.join(KINDS)}"
        )
    try:
        plan = kind.search_parameters(info.search_parameters)
    except (KeyError, ValueError) as error:
        raise BundleMismatchError(f"{where}: search parameters do not fit the kind: {error}") from None
    return kind, plan, lambda effort: kind.search_parameters(scaled(info.search_parameters, effort))


def _map_vectors(path: Path, manifest: Manifest) -> NDArray[np.float32]:
    return open_array(path / VECTORS, "<f4", (manifest.items.num_items, manifest.model.embedding_dim))


def _collection_searcher(
    index: RemoteIndex, manifest: Manifest, vectors_ND: ItemVectors, attributes: Attributes
) -> Searcher:
    collection = manifest.index.collection
    assert collection is not None
    _, plan, plan_at = _plans(Path(collection.address), manifest.index)
    return Searcher(
        index,
        plan,
        plan_at,
        vectors_ND=vectors_ND,
        num_interests=manifest.model.num_interests,
        selector_of=CollectionFilters(attributes, collection.fields).selector,
    )


def _open_searcher(path: Path, manifest: Manifest, vectors_ND: NDArray[np.float32]) -> Searcher:
    info, (num_items, embedding_dim) = manifest.index, vectors_ND.shape
    kind, plan, plan_at = _plans(path, info)
    index = _read_index(path, kind)
    found = (index.ntotal, index.d, index.metric_type)
    if found != (num_items, embedding_dim, faiss.METRIC_INNER_PRODUCT):
        raise BundleMismatchError(
            f"{path}: {found[0]} items of {found[1]} dimensions, metric {found[2]}; the manifest says "
            f"{num_items} of {embedding_dim}, metric {faiss.METRIC_INNER_PRODUCT} (inner product)"
        )
    num_interests = manifest.model.num_interests
    searcher = Searcher(index, plan, plan_at, vectors_ND=vectors_ND, num_interests=num_interests)
    # A first search reads the pages before a caller waits for them.
    searcher.search(np.zeros((num_interests, embedding_dim), np.float32), 1)
    return searcher


def _live_index_maker(path: Path, manifest: Manifest) -> LiveIndexMaker | None:
    """Return the maker of indexes of live items, of the version's kind; None where all are compared.

    They are where the index is exact. An index on another machine gives no centroids, and to compare live
    items takes less time than a search there.
    """
    info, embedding_dim = manifest.index, manifest.model.embedding_dim
    kind = KINDS[info.kind]
    plan = kind.search_parameters(info.search_parameters)
    if plan is None or info.collection is not None:
        return None

    def empty() -> Any:
        if kind.name == "hnsw":
            return faiss.IndexHNSWFlat(embedding_dim, _NUM_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index = _read_index(path, kind)
        if isinstance(index, faiss.IndexIVFPQFastScan | faiss.IndexIVFRaBitQFastScan):
            index.reset()
            return index
        # Lists that are mapped from the file cannot grow.
        lists: Any = faiss.ArrayInvertedLists(index.nlist, index.code_size)
        lists.this.disown()
        index.replace_invlists(lists, True)
        index.ntotal = 0
        return index

    return LiveIndexMaker(
        empty=empty,
        plan=plan,
        plan_at=lambda effort: kind.search_parameters(scaled(info.search_parameters, effort)),
        num_interests=manifest.model.num_interests,
    )


def _read_index(path: Path, kind: IndexKind) -> Any:
    with path.open("rb") as file:
        signature = file.read(_SIGNATURE_BYTES)
    if signature not in kind.signatures:
        raise BundleDamagedError(
            f"{path}: begins with {signature!r}, a {kind.name} index with "
            f"{' or '.join(repr(allowed) for allowed in sorted(kind.signatures))}"
        )
    # No part of a file is longer than the file: a greater length must not be allocated. FAISS also counts the
    # tables that it computes for residual codes, which may be larger than a small file.
    faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, _MAX_TABLE_BYTES))
    faiss.set_deserialization_loop_limit(_MAX_LOOPS)
    try:
        # Mapped where the kind allows it, so that processes share the pages.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise BundleDamagedError(f"{path}: FAISS refuses it ({str(error)[:300]})") from None
    if type(index).__name__ not in kind.faiss_types or not index.is_trained:
        raise BundleDamagedError(
            f"{path}: holds a {type(index).__name__}, a {kind.name} index is one of "
            f"{', '.join(sorted(kind.faiss_types))}, trained"
        )
    return index
