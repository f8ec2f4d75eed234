"""The files of a version, written stage by stage: vectors, encoder, cold start, golden queries, index.

`re4 export` and `re4 rebuild` share these stages. The module knows neither the source of the inputs nor what
is done with the version.

Legend: P histories, Q queries, L history length, K interests, D embedding, N items.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from re4 import __version__
from re4.bundle.array_files import open_array
from re4.bundle.attributes.reader import Attributes
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import write_histories
from re4.bundle.ids.id_map import write_item_ids
from re4.bundle.layout import COLD_START, ENCODER, FOLD_IN, GOLDEN, HISTORIES, POPULAR, VECTORS
from re4.bundle.manifest import IndexInfo, ItemsInfo
from re4.bundle.milvus.collections import NewCollection
from re4.bundle.publishing.publish import StagedVersion
from re4.bundle.scoring.exact_search import exact_search
from re4.bundle.titles import TITLE_COLUMN, write_titles
from re4.common.errors import ExportError
from re4.exporting.catalogue.attributes import choose_attributes
from re4.exporting.catalogue.cold_start import fit_cold_start, fitted_rows, write_cold_vectors
from re4.exporting.catalogue.fold_in import fit_fold_in, num_users_for
from re4.exporting.catalogue.histories import evenly_spaced
from re4.exporting.catalogue.items import NO_ITEMS
from re4.exporting.catalogue.titles import find_titles, titles_of
from re4.exporting.encoder.interests import KEY, VersionInterests
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.index.index_stages import factory_for, make_index
from re4.exporting.index.tuning import num_queries_for
from re4.exporting.settings import TargetDevice, VersionSettings
from re4.exporting.sources.version_inputs import VersionInputs
from re4.exporting.storage.build_cache import BuildCache
from re4.exporting.storage.eta import OnProgress, no_progress
from re4.exporting.storage.mapped_vectors import chunks, sha256_of, write_npy_header

_log = logging.getLogger(__name__)

NUM_GOLDEN_QUERIES: Final = 64
NUM_GOLDEN_CANDIDATES: Final = 100
MAX_NUM_HISTORIES: Final = 1000
"""Histories kept for the next rebuild: as many as tuning uses at most."""
MAX_NUM_POPULAR: Final = 10_000

ENCODER_DIFFERENCE: Final = "encoder_max_abs_difference"
"""Key in the manifest's lineage: largest difference between PyTorch and ONNX Runtime."""

NUM_STAGES: Final = 5
_CHUNK_HISTORIES: Final = 64
_NUM_SCALE_HISTORIES: Final = 256
"""Histories on which the scale of vectors made from attributes is chosen, at most."""


@dataclass(frozen=True, kw_only=True)
class AssembledVersion:
    """A version whose files are all written, ready for the gates and to be published."""

    inputs: VersionInputs
    """Without ids, attributes and counts, which are in files by now."""
    encoder: OnnxEncoder
    golden: GoldenQueries
    index: IndexInfo
    items: ItemsInfo
    encoder_difference: float
    cold_start: Mapping[str, JsonValue]
    """Facts about the vectors that are made from attributes."""
    interests: VersionInterests
    interests_QKD: NDArray[np.float32]
    """Interests of the histories that the index was tuned with."""
    collection: NewCollection | None
    """The collection of the index in Milvus; None for an index in a file."""

    def publish(
        self,
        staged: StagedVersion,
        extra: dict[str, JsonValue] | None = None,
        *,
        is_live: bool = True,
        live_sequence: int = 0,
    ) -> str:
        """Publish it and return its name.

        Args:
            staged: The folder that the files were written to.
            extra: Further facts for the manifest's lineage.
            is_live: Whether it becomes the live version.
            live_sequence: Changes of live items up to this sequence number are part of the version.
        """
        return staged.publish(
            model=self.inputs.model,
            index=self.index,
            items=self.items,
            evaluation={**self.inputs.evaluation, KEY: self.interests.to_json()},
            lineage={
                "code_version": __version__,
                "faiss": faiss.__version__,
                ENCODER_DIFFERENCE: self.encoder_difference,
                "cold_start": dict(self.cold_start),
                **self.inputs.lineage,
                **(extra or {}),
            },
            live_sequence=live_sequence,
            is_live=is_live,
            index_named=None
            if self.collection is None
            else partial(self.collection.publish_as, index=self.index),
        )


def assemble(
    inputs: VersionInputs,
    folder: Path,
    settings: VersionSettings,
    *,
    begin_stage: Callable[[str], None],
    required_attributes: Sequence[str] = (),
    cache: BuildCache | None = None,
    collection: NewCollection | None = None,
    on_progress: OnProgress = no_progress,
) -> AssembledVersion:
    """Write all files of a version.

    Args:
        inputs: The parts of the version.
        folder: An empty folder, or one with the vectors' file that `inputs.vectors_ND` is mapped from.
        settings: The version's index and attributes.
        begin_stage: Called with the name of each of the `NUM_STAGES` stages as it begins.
        required_attributes: Columns kept beside those that the settings name.
        cache: Keeps finished stages of building the index for the next attempt; None for none.
        collection: Gets the index, where the settings name a server of Milvus; None otherwise.
        on_progress: Called with the progress of a long stage.

    Raises:
        UsageError: there is no such index for vectors of this width.
        ExportError: the encoder or the index cannot be made, or the recall target is out of reach.
        BundleError: an item id or an attribute's value cannot be stored.
    """
    begin_stage("item vectors")
    vectors_ND, model = inputs.vectors_ND, inputs.model
    if not (folder / VECTORS).exists():
        _write_vectors(folder / VECTORS, vectors_ND)
    vectors_ND = open_array(folder / VECTORS, "<f4", vectors_ND.shape)
    id_kind = write_item_ids(folder, inputs.items.ids.to_write())
    wanted = settings.attribute_names
    chosen_attributes = choose_attributes(
        inputs.items.columns, None if wanted is None else [*wanted, *required_attributes]
    )
    attribute_infos = write_attributes(folder, chosen_attributes.columns, len(vectors_ND))
    for name, why in chosen_attributes.left_out.items():
        _log.info(f"catalogue column {name} is no attribute: {why}")
    title_column = find_titles(inputs.items.columns, settings.title_column)
    if title_column is not None:
        write_titles(folder, titles_of(inputs.items.columns[title_column]))
    np.save(folder / POPULAR, _most_popular(inputs.counts_N))
    fitted = fitted_rows(inputs.trained_rows(np.arange(inputs.num_trained)))
    events_R = inputs.counts_N[fitted]
    # The items are in files now. Where the caller keeps no reference, this frees their memory.
    inputs = replace(inputs, vectors_ND=vectors_ND, items=NO_ITEMS, counts_N=np.empty(0, np.int64))
    named = settings.title_column if title_column is None else title_column
    if named is not None:
        inputs = replace(inputs, lineage={**inputs.lineage, TITLE_COLUMN: named})
    del chosen_attributes
    factory, reason = factory_for(settings, len(vectors_ND), model.embedding_dim)
    if reason is not None:
        _log.info(f"index {factory}: {reason}")

    begin_stage("encoder")
    difference = inputs.encoder.write(folder / ENCODER, model)
    encoder = OnnxEncoder((folder / ENCODER).read_bytes())

    begin_stage("cold start")
    rows_PL, lengths_P = inputs.rows_PL, inputs.lengths_P
    judging = evenly_spaced(len(rows_PL), _NUM_SCALE_HISTORIES)
    attributes = Attributes.open(folder, attribute_infos, len(vectors_ND))
    map_of_attributes = fit_cold_start(
        vectors_ND,
        inputs.cold_rows,
        fitted,
        None if inputs.is_trained_with_attributes else events_R,
        attributes,
        attribute_infos,
        interests_of(encoder, vectors_ND, rows_PL[judging], lengths_P[judging]),
        share=settings.cold_share,
        num_places=settings.num_candidates,
    )
    map_of_attributes.cold_start.write(folder / COLD_START)
    num_at_mean = write_cold_vectors(
        folder / VECTORS, inputs.cold_rows, map_of_attributes.cold_start, attributes
    )
    users = evenly_spaced(len(rows_PL), num_users_for(model.num_interests))
    fold_in = fit_fold_in(
        vectors_ND,
        fitted,
        events_R,
        attributes,
        map_of_attributes.cold_start,
        interests_of(encoder, vectors_ND, rows_PL[users], lengths_P[users]),
    )
    if fold_in.model is not None:
        fold_in.model.write(folder / FOLD_IN)
    cold_start: dict[str, JsonValue] = {
        "scale": map_of_attributes.scale,
        "share": map_of_attributes.share,
        "num_at_mean": num_at_mean,
    }

    begin_stage("golden queries")
    chosen = evenly_spaced(len(rows_PL), NUM_GOLDEN_QUERIES)
    rows_QL, lengths_Q = rows_PL[chosen], lengths_P[chosen]
    golden = _golden_queries(encoder, vectors_ND, rows_QL, lengths_Q)
    golden.write(folder / GOLDEN)
    kept = evenly_spaced(len(rows_PL), MAX_NUM_HISTORIES)
    write_histories(folder / HISTORIES, rows_PL[kept], lengths_P[kept])
    difference = max(difference, inputs.encoder.check(encoder, vectors_ND[rows_QL], lengths_Q))

    interests = VersionInterests.of(golden, vectors_ND)
    if model.num_interests > 1:
        _log.info(str(interests))
    if interests.collapse:
        _log.warning(interests.collapse)

    begin_stage(f"index {factory}")
    tuning = evenly_spaced(len(rows_PL), num_queries_for(len(vectors_ND), model.num_interests))
    interests_QKD = interests_of(encoder, vectors_ND, rows_PL[tuning], lengths_P[tuning])
    info = make_index(
        factory,
        vectors_ND,
        interests_QKD,
        golden,
        settings,
        folder,
        reason=reason,
        collection=collection,
        attributes=attributes,
        checkpoints=None
        if cache is None or collection is not None
        else cache.checkpoints(_facts(factory, vectors_ND, settings.device)),
        on_progress=lambda text: on_progress(f"index {factory}, {text}"),
    )
    return AssembledVersion(
        inputs=inputs,
        encoder=encoder,
        golden=golden,
        index=info,
        items=ItemsInfo(
            num_items=len(vectors_ND), id_kind=id_kind, space=model.space, attributes=attribute_infos
        ),
        encoder_difference=difference,
        cold_start=cold_start,
        interests=interests,
        interests_QKD=interests_QKD,
        collection=collection,
    )


def interests_of(
    encoder: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    rows_QL: NDArray[np.int64],
    lengths_Q: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Encode histories in chunks; return their interests, [Q, K, D]."""
    interests = []
    for start in range(0, len(rows_QL), _CHUNK_HISTORIES):
        chunk = slice(start, start + _CHUNK_HISTORIES)
        interests.append(encoder(vectors_ND[rows_QL[chunk]], lengths_Q[chunk])[0])
    return np.concatenate(interests)


def _write_vectors(path: Path, vectors_ND: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        write_npy_header(file, (len(vectors_ND), vectors_ND.shape[1]))
        for _, chunk in chunks(vectors_ND):
            file.write(np.ascontiguousarray(chunk, "<f4").data)


def _facts(factory: str, vectors_ND: NDArray[np.float32], device: TargetDevice) -> dict[str, JsonValue]:
    """Return the facts that determine the stages of building an index."""
    return {
        "factory": factory,
        "device": device,
        "vectors": sha256_of(vectors_ND),
        "shape": list(vectors_ND.shape),
        "faiss": faiss.__version__,
        "code_version": __version__,
    }


def _most_popular(counts_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(-counts_N, kind="stable")[:MAX_NUM_POPULAR].astype(np.int64)


def _golden_queries(
    encoder: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    rows_QL: NDArray[np.int64],
    lengths_Q: NDArray[np.int64],
) -> GoldenQueries:
    """Encode histories and search exactly for their candidates."""
    interests_QKD, _ = encoder(vectors_ND[rows_QL], lengths_Q)
    if not np.isfinite(interests_QKD).all():
        raise ExportError(
            "the encoder answers real histories with values that are not finite: do not publish it"
        )
    scores_QM, candidate_rows_QM = exact_search(
        interests_QKD, vectors_ND, NUM_GOLDEN_CANDIDATES, sum_in_float64=True, read_chunks=chunks
    )
    return GoldenQueries(
        rows_QL=rows_QL,
        lengths_Q=lengths_Q,
        interests_QKD=interests_QKD,
        candidate_rows_QM=candidate_rows_QM,
        scores_QM=scores_QM,
    )
