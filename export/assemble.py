"""The files of a version, one stage after another, in a folder where it can be published from.

The stages that every way to a version shares: items, encoder, golden queries, index. Knows nothing about
where the material comes from, nor about what becomes of the version.

Legend: P histories, Q queries, L history length, K interests, D embedding, N items.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from re4 import __version__
from re4.bundle.array_files import open_array
from re4.bundle.attributes.writer import write_attributes
from re4.bundle.exact_search import exact_search
from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import write_histories
from re4.bundle.ids.id_map import write_item_ids
from re4.bundle.layout import ENCODER, GOLDEN, HISTORIES, POPULAR, VECTORS
from re4.bundle.manifest import IndexInfo, ItemsInfo
from re4.bundle.publishing.publish import StagedVersion
from re4.common.errors import ExportError
from re4.exporting.catalogue.attributes import choose_attributes
from re4.exporting.catalogue.histories import spread
from re4.exporting.catalogue.items import NO_ITEMS
from re4.exporting.encoder.onnx_runner import OnnxEncoder
from re4.exporting.index.devices import Device
from re4.exporting.index.make import factory_for, make_index
from re4.exporting.index.tuning import Goal, num_queries_for
from re4.exporting.sources.material import Material
from re4.exporting.storage.build_cache import Room
from re4.exporting.storage.eta import Note, unnoted
from re4.exporting.storage.mapped_vectors import begin_npy, digest_of, pieces

_log = logging.getLogger(__name__)

NUM_GOLDEN_QUERIES: Final = 64
NUM_GOLDEN_CANDIDATES: Final = 100
MAX_NUM_HISTORIES: Final = 1000
"""Kept for the next rebuild: as many as tuning asks at most."""
MAX_NUM_POPULAR: Final = 10_000

ENCODER_DIFFERENCE: Final = "encoder_max_abs_difference"
"""Key in the manifest's lineage: largest difference between PyTorch and ONNX Runtime."""

NUM_STAGES: Final = 4
_ENCODED_AT_ONCE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A version whose files are all written, ready to be judged and published."""

    material: Material
    """Without ids, attributes and counts, which are in the files."""
    exported: OnnxEncoder
    golden: GoldenQueries
    index: IndexInfo
    items: ItemsInfo
    encoder_difference: float
    interests_QKD: NDArray[np.float32]
    """Interests of the histories that the index was tuned with."""

    def publish(self, staged: StagedVersion, extra: dict[str, JsonValue] | None = None) -> str:
        """Make it the live version; its name.

        Args:
            staged: Where the files were written.
            extra: More to be kept in the manifest's lineage.
        """
        return staged.publish(
            model=self.material.model,
            index=self.index,
            items=self.items,
            evaluation=self.material.evaluation,
            lineage={
                "code_version": __version__,
                "faiss": faiss.__version__,
                ENCODER_DIFFERENCE: self.encoder_difference,
                **self.material.lineage,
                **(extra or {}),
            },
        )


def assemble(
    material: Material,
    folder: Path,
    *,
    index: str,
    goal: Goal,
    attributes: Sequence[str] | None = None,
    stage: Callable[[str], None],
    room: Room | None = None,
    memory_limit: int | None = None,
    device: Device = Device.CPU,
    note: Note = unnoted,
) -> Assembled:
    """Write all files of a version.

    Args:
        material: What it is made of.
        folder: An empty folder, or one with the vectors' file that `material.vectors_ND` is mapped from.
        index: `auto`, a name in `re4.exporting.index.families.RECIPES`, or a FAISS factory string.
        goal: The recall that the index is tuned to.
        attributes: Columns of the items to keep as attributes; None to keep those that describe.
        stage: Called with the name of each of the `NUM_STAGES` stages as it begins.
        room: Where the stages of building the index are kept, for a next try; None to begin afresh.
        memory_limit: Bytes that building the index may hold at once; None for no limit.
        device: What servers will search the index on.
        note: Is told how far a long stage is.

    Raises:
        UsageError: there is no such index for vectors of this width.
        ExportError: the encoder or the index cannot be made, or the goal is out of reach.
        BundleError: an item id or an attribute's value cannot be stored.
    """
    stage("item vectors")
    vectors_ND, model = material.vectors_ND, material.model
    if not (folder / VECTORS).exists():
        _write_vectors(folder / VECTORS, vectors_ND)
    vectors_ND = open_array(folder / VECTORS, "<f4", vectors_ND.shape)
    id_kind = write_item_ids(folder, material.items.ids.to_write())
    chosen_attributes = choose_attributes(material.items.columns, attributes)
    attribute_infos = write_attributes(folder, chosen_attributes.columns, len(vectors_ND))
    for name, why in chosen_attributes.left_out.items():
        _log.info(f"catalogue column {name} is no attribute: {why}")
    np.save(folder / POPULAR, _most_popular(material.counts_N))
    # The items are in files now: a caller who keeps none of them frees what was in memory.
    material = replace(material, vectors_ND=vectors_ND, items=NO_ITEMS, counts_N=np.empty(0, np.int64))
    del chosen_attributes
    factory, reason = factory_for(index, len(vectors_ND), model.embedding_dim, memory_limit, device)
    if reason is not None:
        _log.info(f"index {factory}: {reason}")

    stage("encoder")
    difference = material.encoder.write(folder / ENCODER, model)
    exported = OnnxEncoder((folder / ENCODER).read_bytes())

    stage("golden queries")
    rows_PL, lengths_P = material.rows_PL, material.lengths_P
    chosen = spread(len(rows_PL), NUM_GOLDEN_QUERIES)
    rows_QL, lengths_Q = rows_PL[chosen], lengths_P[chosen]
    golden = _golden_queries(exported, vectors_ND, rows_QL, lengths_Q)
    golden.write(folder / GOLDEN)
    kept = spread(len(rows_PL), MAX_NUM_HISTORIES)
    write_histories(folder / HISTORIES, rows_PL[kept], lengths_P[kept])
    difference = max(difference, material.encoder.check(exported, vectors_ND[rows_QL], lengths_Q))

    stage(f"index {factory}")
    tuning = spread(len(rows_PL), num_queries_for(len(vectors_ND), model.num_interests))
    interests_QKD = interests_of(exported, vectors_ND, rows_PL[tuning], lengths_P[tuning])
    info = make_index(
        factory,
        vectors_ND,
        interests_QKD,
        golden.interests_QKD,
        goal,
        folder,
        num_golden_candidates=golden.candidate_rows_QM.shape[1],
        reason=reason,
        stages=None if room is None else room.stages(_facts(factory, vectors_ND, device)),
        memory_limit=memory_limit,
        device=device,
        note=lambda text: note(f"index {factory}, {text}"),
    )
    return Assembled(
        material=material,
        exported=exported,
        golden=golden,
        index=info,
        items=ItemsInfo(
            num_items=len(vectors_ND), id_kind=id_kind, space=model.space, attributes=attribute_infos
        ),
        encoder_difference=difference,
        interests_QKD=interests_QKD,
    )


def interests_of(
    exported: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    rows_QL: NDArray[np.int64],
    lengths_Q: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Interests of histories, encoded a few at a time: [Q, K, D]."""
    return np.concatenate(
        [
            exported(vectors_ND[rows_QL[start : start + _ENCODED_AT_ONCE]], lengths)[0]
            for start in range(0, len(rows_QL), _ENCODED_AT_ONCE)
            for lengths in (lengths_Q[start : start + _ENCODED_AT_ONCE],)
        ]
    )


def _write_vectors(path: Path, vectors_ND: NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        begin_npy(file, (len(vectors_ND), vectors_ND.shape[1]))
        for _, piece in pieces(vectors_ND):
            file.write(np.ascontiguousarray(piece, "<f4").data)


def _facts(factory: str, vectors_ND: NDArray[np.float32], device: Device) -> dict[str, JsonValue]:
    """What the stages of building an index follow from."""
    return {
        "factory": factory,
        "device": device,
        "vectors": digest_of(vectors_ND),
        "shape": list(vectors_ND.shape),
        "faiss": faiss.__version__,
        "code_version": __version__,
    }


def _most_popular(counts_N: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(-counts_N, kind="stable")[:MAX_NUM_POPULAR].astype(np.int64)


def _golden_queries(
    exported: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    rows_QL: NDArray[np.int64],
    lengths_Q: NDArray[np.int64],
) -> GoldenQueries:
    """What the exported encoder and exact search answer to histories."""
    interests_QKD, _ = exported(vectors_ND[rows_QL], lengths_Q)
    if not np.isfinite(interests_QKD).all():
        raise ExportError(
            "the encoder answers real histories with values that are not finite: do not publish it"
        )
    scores_QM, candidate_rows_QM = exact_search(
        interests_QKD, vectors_ND, NUM_GOLDEN_CANDIDATES, sum_in_float64=True, read_chunks=pieces
    )
    return GoldenQueries(
        rows_QL=rows_QL,
        lengths_Q=lengths_Q,
        interests_QKD=interests_QKD,
        candidate_rows_QM=candidate_rows_QM,
        scores_QM=scores_QM,
    )
