"""A published version opened offline: to take its encoder from, or to compare a new one with.

Every byte is verified before anything is parsed. Knows nothing about servers.

Legend: Q queries, P histories, L history length, K interests, D embedding, M candidates, N items.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import open_array
from re4.bundle.attributes.reader import Attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import read_histories
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import ENCODER, GOLDEN, HISTORIES, INDEX, IS_COLD, VECTORS
from re4.bundle.manifest import IndexInfo, Manifest
from re4.bundle.verify import verify_version
from re4.common.errors import BundleMismatchError
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.index.build import BuiltIndex
from re4.exporting.index.families import FAMILIES
from re4.exporting.index.search import find, merge
from re4.exporting.storage.mapped_vectors import let_go

_SEARCHED_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True)
class PublishedVersion:
    """A verified version."""

    path: Path
    manifest: Manifest
    item_ids: ItemIds
    vectors_ND: NDArray[np.float32]
    """Memory-mapped."""
    encoder: OnnxEncoder

    def histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Real histories in this version's rows: rows_PL, newest first, padded with 0, and lengths_P.

        Those kept for this, or in a version that has none, those of the golden queries.
        """
        if (self.path / HISTORIES).exists():
            return read_histories(self.path / HISTORIES)
        golden = GoldenQueries.read(self.path / GOLDEN)
        return golden.rows_QL, golden.lengths_Q

    def is_cold_N(self) -> NDArray[np.bool_]:
        """Which items have a vector that was not trained."""
        attributes = Attributes.open(self.path, self.manifest.items.attributes, self.manifest.items.num_items)
        if IS_COLD not in attributes:
            return np.zeros(self.manifest.items.num_items, np.bool_)
        is_cold = attributes[IS_COLD]
        return is_cold.mask_with([code for code in is_cold.value_codes(["true"]).tolist() if code >= 0])

    def index(self) -> BuiltIndex:
        """The index, read from its file."""
        return open_index(self.path / INDEX, self.manifest.index)


def open_version(path: Path) -> PublishedVersion:
    """Verify a version and open it.

    Raises:
        BundleError: it is missing, damaged, or does not fit together.
    """
    manifest = verify_version(path)
    num_items = manifest.items.num_items
    return PublishedVersion(
        path=path,
        manifest=manifest,
        item_ids=ItemIds.open(path, manifest.items.id_kind, num_items),
        vectors_ND=open_array(path / VECTORS, "<f4", (num_items, manifest.model.embedding_dim)),
        encoder=OnnxEncoder((path / ENCODER).read_bytes()),
    )


def open_index(path: Path, info: IndexInfo) -> BuiltIndex:
    """Read an index from its file, mapped where its kind allows it.

    Raises:
        BundleMismatchError: of a kind that this code does not know.
    """
    family = next((family for family in FAMILIES if family.name == info.kind), None)
    if family is None:
        raise BundleMismatchError(f"{path}: of the kind {info.kind!r}, which this code does not know")
    return BuiltIndex(
        index=faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC),
        factory=info.factory or info.kind,
        family=family,
    )


def answers(
    built: BuiltIndex,
    info: IndexInfo,
    interests_QKD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    num_candidates: int,
) -> NDArray[np.int64]:
    """What a version answers with the parameters chosen for it: merged rows [Q, M], -1 where it has none."""
    num_candidates = min(num_candidates, int(built.index.ntotal))
    settings = info.search_parameters
    found = []
    for start in range(0, len(interests_QKD), _SEARCHED_AT_ONCE):
        batch_BKD = interests_QKD[start : start + _SEARCHED_AT_ONCE]
        lists = find(built, settings, batch_BKD, num_candidates)
        found.append(merge(lists, settings, batch_BKD, vectors_ND, num_candidates))
        let_go(vectors_ND)
    return np.concatenate(found)
