"""An encoder for vectors that were made elsewhere: taken from a published version, or from a run.

With it come real histories and popularity, by item id, and the vectors that the encoder knows: an encoder
works only in the space that it was trained in, so given vectors must agree with those.

Legend: P histories, L history length, N given items, D embedding, S shared items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from re4.bundle.array_files import open_array
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import ENCODER, POPULAR, is_version_name
from re4.bundle.manifest import ModelInfo
from re4.common.errors import DataError
from re4.exporting.catalogue.histories import follow_items, spread
from re4.exporting.catalogue.items import Ids, Items, mapped_ids
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.sources.given_vectors import GivenVectors
from re4.exporting.sources.material import EncoderSource, Material, run_material
from re4.exporting.sources.published_version import PublishedVersion, open_version
from re4.exporting.storage.mapped_vectors import mapped_without_a_name
from re4.training.data.tables.ids import to_kind
from re4.training.run.run import Run

_MAX_COMPARED: Final = 100_000
_INHERITED: Final = frozenset({"run", "config", "torch", "onnxruntime"})
"""What a version's lineage says about its encoder."""


@dataclass(frozen=True, kw_only=True)
class KeptEncoder:
    """The encoder of a published version: its very bytes."""

    content: bytes

    def write(self, path: Path, model: ModelInfo) -> float:
        """Write it again; see `EncoderSource`."""
        path.write_bytes(self.content)
        return 0.0

    def check(
        self, exported: OnnxEncoder, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> float:
        """Nothing was converted; see `EncoderSource`."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Donor:
    """What comes with an encoder; rows are the donor's own."""

    where: str
    encoder: EncoderSource
    model: ModelInfo
    item_ids: ItemIds
    vectors_ND: NDArray[np.float32]
    is_trained_N: NDArray[np.bool_]
    counts_N: NDArray[np.int64]
    rows_PL: NDArray[np.int64]
    lengths_P: NDArray[np.int64]
    evaluation: Mapping[str, JsonValue]
    lineage: Mapping[str, JsonValue]


def donor_from(source: Path, folder: Path) -> Donor:
    """Open a version's folder or a run's.

    Args:
        source: The folder.
        folder: As for `run_material`.

    Raises:
        BundleError: it is a damaged version.
        RunError: it is no version, and no finished run either.
    """
    if is_version_name(source.resolve().name):
        return _version_donor(open_version(source.resolve()))
    found = run_material(Run.open(source), folder)
    return Donor(
        where=found.where,
        encoder=found.encoder,
        model=found.model,
        item_ids=mapped_ids(found.items.ids, folder),
        vectors_ND=found.vectors_ND,
        is_trained_N=np.ones(len(found.vectors_ND), np.bool_),
        counts_N=found.counts_N,
        rows_PL=found.rows_PL,
        lengths_P=found.lengths_P,
        evaluation=found.evaluation,
        lineage=found.lineage,
    )


def _version_donor(version: PublishedVersion) -> Donor:
    num_items = version.manifest.items.num_items
    popular_rows = open_array(version.path / POPULAR, "<i8", (None,))
    counts_N = np.zeros(num_items, np.int64)
    # How often is not known any more, but in which order.
    counts_N[popular_rows] = np.arange(len(popular_rows), 0, -1)
    rows_PL, lengths_P = version.histories()
    return Donor(
        where=str(version.path),
        encoder=KeptEncoder(content=(version.path / ENCODER).read_bytes()),
        model=version.manifest.model,
        item_ids=version.item_ids,
        vectors_ND=version.vectors_ND,
        is_trained_N=~version.is_cold_N(),
        counts_N=counts_N,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        evaluation=version.manifest.evaluation,
        lineage={
            **{key: value for key, value in version.manifest.lineage.items() if key in _INHERITED},
            "encoder_from": version.manifest.version,
        },
    )


def rows_in(theirs: ItemIds, ids: Ids) -> NDArray[np.int32]:
    """Rows of ids of either kind among others, -1 where those lack them."""
    rows_N = np.full(len(ids), -1, np.int32)
    start = 0
    for piece in ids.pieces():
        some = to_kind(piece, theirs.kind)
        places = np.flatnonzero(some.is_not_null().to_numpy())
        rows_N[start + places] = theirs.rows(some.drop_nulls().to_list())
        start += len(piece)
    return rows_N


def given_material(given: GivenVectors, donor: Donor, folder: Path) -> tuple[Material, float]:
    """Put given vectors and an encoder together.

    Args:
        given: Vectors and ids.
        donor: What comes with the encoder.
        folder: Where the items' popularity is written, to be mapped: in a file that goes with it.

    Returns:
        The material, its items in the given order; and the *agreement*: the median cosine between given and
        trained vectors of the items that both have.

    Raises:
        DataError: widths or kinds of id differ, no item is shared, or no history is left.
    """
    width = given.vectors_ND.shape[1]
    if width != donor.model.embedding_dim:
        raise DataError(
            f"{given.where}: vectors of width {width}, the encoder of {donor.where} needs "
            f"{donor.model.embedding_dim}; name the one that fits with --encoder-from"
        )
    theirs_N = rows_in(donor.item_ids, given.item_ids)
    ours_S = np.flatnonzero(theirs_N >= 0).astype(np.int32)
    if not ours_S.size:
        (an_id,) = donor.item_ids.ids(np.zeros(1, np.int64))
        raise DataError(
            f"{given.where}: none of its {len(theirs_N):,} items is known to {donor.where} (ids look like "
            f"{given.item_ids[0]!r} and {an_id!r}): there is no history to check the version "
            "with, and no telling whether the encoder fits. Name the one that does with --encoder-from"
        )
    counts_N = mapped_without_a_name(folder, (len(theirs_N),), "<i8")
    theirs_S = theirs_N[ours_S]
    counts_N[ours_S] = donor.counts_N[theirs_S]
    del theirs_N
    rows_of_theirs = np.full(len(donor.vectors_ND), -1, np.int32)
    rows_of_theirs[theirs_S] = ours_S
    rows_PL, lengths_P = follow_items(donor.rows_PL, donor.lengths_P, rows_of_theirs, donor.where)
    del rows_of_theirs
    material = Material(
        where=given.where,
        vectors_ND=given.vectors_ND,
        items=Items(ids=given.item_ids),
        counts_N=counts_N,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        encoder=donor.encoder,
        model=donor.model,
        evaluation=donor.evaluation,
        lineage=donor.lineage,
    )
    return material, _agreement(given, donor, ours_S, theirs_S)


def _agreement(
    given: GivenVectors, donor: Donor, ours_S: NDArray[np.int32], theirs_S: NDArray[np.int32]
) -> float:
    trained = np.flatnonzero(donor.is_trained_N[theirs_S])
    if not trained.size:
        return 0.0
    chosen = trained[spread(len(trained), _MAX_COMPARED)]
    ours_SD = given.vectors_ND[ours_S[chosen]].astype(np.float64)
    theirs_SD = donor.vectors_ND[theirs_S[chosen]].astype(np.float64)
    norms_S = np.linalg.norm(ours_SD, axis=1) * np.linalg.norm(theirs_SD, axis=1)
    products_S = (ours_SD * theirs_SD).sum(axis=1)
    cosines_S = np.divide(products_S, norms_S, out=np.zeros_like(products_S), where=norms_S > 0)
    return float(np.median(cosines_S))
