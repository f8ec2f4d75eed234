"""An encoder for vectors that were made elsewhere: taken from a published version, or from a run.

The source also gives real histories and popularity, by item id, and the vectors that its encoder was trained
with. An encoder works only in the space that it was trained in, so given vectors must agree with those.

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
from re4.exporting.catalogue.histories import evenly_spaced, remap_histories
from re4.exporting.catalogue.items import Ids, Items, map_ids
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.sources.given_vectors import GivenVectors
from re4.exporting.sources.published_version import PublishedVersion, open_version
from re4.exporting.sources.version_inputs import VersionEncoder, VersionInputs, inputs_from_run
from re4.exporting.storage.mapped_vectors import map_unnamed_file
from re4.training.data.tables.ids import to_kind
from re4.training.run.run import Run

_MAX_COMPARED: Final = 100_000
_INHERITED: Final = frozenset({"run", "config", "torch", "onnxruntime"})
"""Keys of a version's lineage that describe its encoder."""


@dataclass(frozen=True, kw_only=True)
class CopiedEncoder:
    """The encoder of a published version, copied byte by byte."""

    content: bytes

    def write(self, path: Path, model: ModelInfo) -> float:
        """Write the copy; see `VersionEncoder`."""
        path.write_bytes(self.content)
        return 0.0

    def check(
        self, exported: OnnxEncoder, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> float:
        """Return 0: nothing was converted; see `VersionEncoder`."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """A version or a run that an encoder is taken from; rows are those of the source."""

    where: str
    encoder: VersionEncoder
    model: ModelInfo
    item_ids: ItemIds
    vectors_ND: NDArray[np.float32]
    is_trained_N: NDArray[np.bool_]
    counts_N: NDArray[np.int64]
    rows_PL: NDArray[np.int64]
    lengths_P: NDArray[np.int64]
    evaluation: Mapping[str, JsonValue]
    lineage: Mapping[str, JsonValue]


def open_encoder_source(path: Path, folder: Path) -> EncoderSource:
    """Open a version's folder or a run's.

    Args:
        path: The folder of the version or run.
        folder: As for `inputs_from_run`.

    Raises:
        BundleError: it is a damaged version.
        RunError: it is no version, and no finished run either.
    """
    if is_version_name(path.resolve().name):
        return _version_source(open_version(path.resolve()))
    found = inputs_from_run(Run.open(path), folder)
    return EncoderSource(
        where=found.where,
        encoder=found.encoder,
        model=found.model,
        item_ids=map_ids(found.items.ids, folder),
        vectors_ND=found.vectors_ND,
        is_trained_N=np.ones(len(found.vectors_ND), np.bool_),
        counts_N=found.counts_N,
        rows_PL=found.rows_PL,
        lengths_P=found.lengths_P,
        evaluation=found.evaluation,
        lineage=found.lineage,
    )


def _version_source(version: PublishedVersion) -> EncoderSource:
    num_items = version.manifest.items.num_items
    popular_rows = open_array(version.path / POPULAR, "<i8", (None,))
    counts_N = np.zeros(num_items, np.int64)
    # The numbers of events are not known any more, only their order.
    counts_N[popular_rows] = np.arange(len(popular_rows), 0, -1)
    rows_PL, lengths_P = version.histories()
    return EncoderSource(
        where=str(version.path),
        encoder=CopiedEncoder(content=(version.path / ENCODER).read_bytes()),
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
    """Return the rows of ids of either kind in an id map, -1 where it lacks them."""
    rows_N = np.full(len(ids), -1, np.int32)
    start = 0
    for chunk in ids.chunks():
        some = to_kind(chunk, theirs.kind)
        places = np.flatnonzero(some.is_not_null().to_numpy())
        rows_N[start + places] = theirs.rows(some.drop_nulls().to_list())
        start += len(chunk)
    return rows_N


def inputs_from_vectors(
    given: GivenVectors, source: EncoderSource, folder: Path
) -> tuple[VersionInputs, float]:
    """Put given vectors and an encoder together.

    Args:
        given: Vectors and ids.
        source: The source of the encoder.
        folder: The items' popularity is written there, into a file without a name, and mapped from it.

    Returns:
        The inputs, their items in the given order; and the *agreement*: the median cosine between given and
        trained vectors of the items that both have.

    Raises:
        DataError: widths or kinds of id differ, no item is shared, or no history is left.
    """
    width = given.vectors_ND.shape[1]
    if width != source.model.embedding_dim:
        raise DataError(
            f"{given.where}: vectors of width {width}, the encoder of {source.where} needs "
            f"{source.model.embedding_dim}; name the one that fits with --encoder-from"
        )
    theirs_N = rows_in(source.item_ids, given.item_ids)
    ours_S = np.flatnonzero(theirs_N >= 0).astype(np.int32)
    if not ours_S.size:
        (an_id,) = source.item_ids.ids(np.zeros(1, np.int64))
        raise DataError(
            f"{given.where}: none of its {len(theirs_N):,} items is known to {source.where} (ids look like "
            f"{given.item_ids[0]!r} and {an_id!r}): there is no history to check the version "
            "with, and no telling whether the encoder fits. Name the one that does with --encoder-from"
        )
    counts_N = map_unnamed_file(folder, (len(theirs_N),), "<i8")
    theirs_S = theirs_N[ours_S]
    counts_N[ours_S] = source.counts_N[theirs_S]
    del theirs_N
    rows_of_theirs = np.full(len(source.vectors_ND), -1, np.int32)
    rows_of_theirs[theirs_S] = ours_S
    rows_PL, lengths_P = remap_histories(source.rows_PL, source.lengths_P, rows_of_theirs, source.where)
    del rows_of_theirs
    inputs = VersionInputs(
        where=given.where,
        vectors_ND=given.vectors_ND,
        items=Items(ids=given.item_ids),
        counts_N=counts_N,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
        encoder=source.encoder,
        model=source.model,
        evaluation=source.evaluation,
        lineage=source.lineage,
    )
    return inputs, _agreement(given, source, ours_S, theirs_S)


def _agreement(
    given: GivenVectors, source: EncoderSource, ours_S: NDArray[np.int32], theirs_S: NDArray[np.int32]
) -> float:
    trained = np.flatnonzero(source.is_trained_N[theirs_S])
    if not trained.size:
        return 0.0
    chosen = trained[evenly_spaced(len(trained), _MAX_COMPARED)]
    ours_SD = given.vectors_ND[ours_S[chosen]].astype(np.float64)
    theirs_SD = source.vectors_ND[theirs_S[chosen]].astype(np.float64)
    norms_S = np.linalg.norm(ours_SD, axis=1) * np.linalg.norm(theirs_SD, axis=1)
    products_S = (ours_SD * theirs_SD).sum(axis=1)
    cosines_S = np.divide(products_S, norms_S, out=np.zeros_like(products_S), where=norms_S > 0)
    return float(np.median(cosines_S))
