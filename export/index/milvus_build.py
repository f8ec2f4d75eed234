"""The index of a version as a collection in Milvus: created, filled in chunks, indexed, loaded.

Legend: N items, C items of a chunk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attribute, Attributes
from re4.bundle.manifest import CollectionInfo, IndexInfo
from re4.bundle.milvus.address import AUTO, INDEX_TYPES
from re4.bundle.milvus.collections import VECTORS_SHA256, NewCollection
from re4.bundle.milvus.fields import MAX_FIELDS, MAX_VALUES_OF_ITEM, NO_VALUE, code_field, position_field
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.index.families import MILVUS_FAMILIES
from re4.exporting.index.index_names import MAX_FLAT_ITEMS, num_lists
from re4.exporting.storage.eta import EtaReporter, OnProgress
from re4.exporting.storage.mapped_vectors import chunks

_CHUNK_BYTES: Final = 8 << 20
"""Of the vectors of one insert. Milvus takes messages of at most 64 MB."""
_SEGMENT_ITEMS: Final = 1_000_000
"""About so many items of 64 dimensions are one segment, which has an index of its own."""
_HNSW_PARAMETERS: Final = {"M": 16, "efConstruction": 200}


def index_type_for(name: str, num_items: int) -> tuple[str, str | None]:
    """Return Milvus's index type for a name of `?index=`; for `auto`, also the reason of the choice."""
    if name != AUTO:
        return INDEX_TYPES[name], None
    if num_items <= MAX_FLAT_ITEMS:
        reason = f"{num_items:,} items, at most {MAX_FLAT_ITEMS:,}: comparing all is fast, and exact"
        return INDEX_TYPES["flat"], reason
    reason = "a quarter of the memory of whole vectors; candidates are scored by the vectors of the version"
    return INDEX_TYPES["ivf-sq8"], reason


def build_collection(
    collection: NewCollection,
    index_type: str,
    vectors_ND: NDArray[np.float32],
    attributes: Attributes,
    vectors_sha256: str,
    on_progress: OnProgress,
) -> BuiltIndex:
    """Fill the collection of a version, and load it.

    Args:
        collection: Without any row yet.
        index_type: Milvus's name of it.
        vectors_ND: Item vectors; may be memory-mapped.
        attributes: Those of the version; filters by them are answered by Milvus.
        vectors_sha256: SHA-256 of the version's file of vectors, by which its servers know the collection.
        on_progress: Called with the progress.

    Raises:
        BundleUnavailableError: the server does not answer, or refuses.
    """
    num_items, embedding_dim = vectors_ND.shape
    server, name = collection.server, collection.name
    code_fields, position_fields = _fields(attributes)
    server.create(
        name,
        embedding_dim,
        {field: attribute.is_multi_valued for field, attribute in code_fields.items()},
        list(position_fields),
        {VECTORS_SHA256: vectors_sha256},
    )
    eta = EtaReporter(on_progress, "filling", num_items)
    chunk_rows = max(1, _CHUNK_BYTES // (4 * embedding_dim))
    for start, chunk_CD in chunks(vectors_ND, chunk_rows):
        rows_C = np.arange(start, start + len(chunk_CD))
        server.insert(
            name,
            start,
            chunk_CD,
            {field: _codes(attribute, rows_C) for field, attribute in code_fields.items()},
            {field: _positions(attribute, rows_C) for field, attribute in position_fields.items()},
        )
        eta.at(start + len(chunk_CD))
    lists = num_lists(min(num_items, _SEGMENT_ITEMS)) if index_type.startswith("IVF") else 1
    parameters = {"IVF": {"nlist": lists}, "HNSW": _HNSW_PARAMETERS}.get(index_type.partition("_")[0], {})
    server.make_index(name, index_type, parameters, lambda share: on_progress(f"indexing, {share:.0%}"))
    server.load(name, lambda share: on_progress(f"loading, {share:.0%}"))
    info = CollectionInfo(
        address=str(collection.address),
        name=name,
        index_type=index_type,
        num_lists=lists,
        fields=(*code_fields, *position_fields),
    )
    family = MILVUS_FAMILIES[index_type]
    return BuiltIndex.open(Path(), IndexInfo(kind=family.name, collection=info), vectors_ND.shape)


def bytes_of_index(index_type: str, num_items: int, embedding_dim: int) -> int:
    """Estimate the memory of an index in Milvus, by its layout."""
    vector_bytes = embedding_dim if index_type == "IVF_SQ8" else 4 * embedding_dim
    links_bytes = 2 * 4 * _HNSW_PARAMETERS["M"] if index_type == "HNSW" else 0
    return num_items * (vector_bytes + links_bytes + 8)


def _fields(attributes: Attributes) -> tuple[dict[str, Attribute], dict[str, Attribute]]:
    """Return the attributes that have fields, by field: of codes, and of positions."""
    codes: dict[str, Attribute] = {}
    positions: dict[str, Attribute] = {}
    for place, name in enumerate(attributes.names):
        attribute = attributes[name]
        num_fields = 1 + (attribute.order is not None and not attribute.is_multi_valued)
        if len(codes) + len(positions) + num_fields > MAX_FIELDS:
            break
        if attribute.is_multi_valued and attribute.max_num_values_of_item() > MAX_VALUES_OF_ITEM:
            continue
        codes[code_field(place)] = attribute
        if num_fields > 1:
            positions[position_field(place)] = attribute
    return codes, positions


def _codes(
    attribute: Attribute, rows_C: NDArray[np.int64]
) -> NDArray[np.int32] | Sequence[NDArray[np.int32]]:
    codes, lengths_C = attribute.codes_of(rows_C)
    if lengths_C is not None:
        return np.split(codes.astype(np.int32), np.cumsum(lengths_C)[:-1])
    codes_C = codes.astype(np.int32)
    return np.where(codes_C == attribute.num_values, np.int32(NO_VALUE), codes_C)


def _positions(attribute: Attribute, rows_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the number or date of each item; 0 without one, which the code tells apart."""
    codes_C, _ = attribute.codes_of(rows_C)
    return np.asarray(np.append(attribute.positions(), 0.0)[codes_C])
