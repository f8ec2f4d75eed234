"""A published version opened offline: its encoder is reused, or a new version is compared with it.

Every byte is verified before anything is parsed.

Legend: P histories, L history length, D embedding, N items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import open_array
from re4.bundle.attributes.reader import Attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import read_histories
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import ENCODER, GOLDEN, HISTORIES, INDEX, IS_COLD, VECTORS
from re4.bundle.manifest import Manifest
from re4.bundle.verify import verify_version
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.index.built_index import BuiltIndex


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
        """Return real histories in this version's rows: rows_PL, newest first, padded with 0, and lengths_P.

        A version without a file of histories gives those of its golden queries.
        """
        if (self.path / HISTORIES).exists():
            return read_histories(self.path / HISTORIES)
        golden = GoldenQueries.read(self.path / GOLDEN)
        return golden.rows_QL, golden.lengths_Q

    def is_cold_N(self) -> NDArray[np.bool_]:
        """Return the mask of items whose vector was not trained."""
        attributes = Attributes.open(self.path, self.manifest.items.attributes, self.manifest.items.num_items)
        if IS_COLD not in attributes:
            return np.zeros(self.manifest.items.num_items, np.bool_)
        is_cold = attributes[IS_COLD]
        return is_cold.mask_with([code for code in is_cold.value_codes(["true"]).tolist() if code >= 0])

    def index(self) -> BuiltIndex:
        """Read the index from its file."""
        return BuiltIndex.open(self.path / INDEX, self.manifest.index, self.vectors_ND.shape)


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
