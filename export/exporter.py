"""From a finished run to a published bundle version.

Reads a run, has its encoder converted, its index built and its golden answers computed, and publishes the
whole. Knows nothing about how any of these is done, nor about serving.

Legend: Q queries, L history length, N items, D embedding.
"""

import hashlib
from pathlib import Path
from typing import Any, Final, Protocol

import faiss
import numpy as np
import onnxruntime
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from bundle.golden import GoldenQueries
from bundle.ids import write_item_ids
from bundle.layout import ENCODER, GOLDEN, POPULAR, VECTORS
from bundle.manifest import ItemsInfo, ModelInfo
from bundle.publish import stage_version
from export.choosing import AUTO
from export.exact import exact_candidates
from export.indexing import check_request, factory_for, make_index
from export.onnx_encoder import export_encoder
from export.onnx_runner import OnnxEncoder
from export.parity import compare
from export.tuning import Goal, num_queries_for
from re4 import __version__
from re4.console import progress, say
from re4.errors import ExportError
from training.config import TrainConfig
from training.run import Run

NUM_GOLDEN_QUERIES: Final = 64
NUM_GOLDEN_CANDIDATES: Final = 100
MAX_NUM_POPULAR: Final = 10_000
DEFAULT_GOAL: Final = Goal(recall=0.95, num_candidates=100)

_ENCODED_AT_ONCE: Final = 64

ENCODER_DIFFERENCE: Final = "encoder_max_abs_difference"
"""Key in the manifest's lineage: largest difference between PyTorch and ONNX Runtime."""


class ModelToExport(Protocol):
    """What export needs of a trained model."""

    @property
    def encoder(self) -> nn.Module:
        """The forward flow."""

    def item_vectors_ND(self) -> torch.Tensor:
        """Item vectors, float32."""


class RunToExport(Protocol):
    """What export needs of a run; `training.run.Run` is one."""

    path: Path
    config: TrainConfig

    def items(self) -> pl.DataFrame:
        """Catalogue in row order, `item_id` among its columns."""

    def item_counts_N(self) -> NDArray[np.int64]:
        """Training events of each item."""

    def load_model(self) -> ModelToExport:
        """The trained model."""

    def probe_histories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Real held-out histories: rows_QL, newest first, padded with 0, and lengths_Q."""

    def evaluation(self) -> dict[str, Any]:
        """Metrics by split."""


def export_run(run_path: Path, bundles: Path, *, index: str = AUTO, goal: Goal = DEFAULT_GOAL) -> str:
    """Publish a finished run as the live version of a bundle directory.

    Args:
        run_path: The run's folder.
        bundles: The bundle directory; created where it does not exist.
        index: `auto`, a name in `export.indexes.RECIPES`, or a FAISS factory string.
        goal: The recall that the index is tuned to.

    Returns:
        The version's name.

    Raises:
        UsageError: there is no such index, no server loads it, or the goal is out of range.
        RunError: the run is missing, unfinished or damaged.
        ExportError: the run cannot become a version; the directory is as it was.
        BundleError: the directory cannot be written, or an item id cannot be stored.
    """
    check_request(index, goal)
    return publish_run(Run.open(run_path), bundles, index=index, goal=goal)


def publish_run(run: RunToExport, bundles: Path, *, index: str, goal: Goal = DEFAULT_GOAL) -> str:
    """Publish an opened run; as `export_run`."""
    config = run.config
    with progress("Exporting", total=5) as bar, stage_version(bundles) as staged:
        bar.note("item vectors")
        model = run.load_model()
        vectors_ND, item_ids = _items(run, model)
        space = space_of(vectors_ND)
        np.save(staged.path / VECTORS, vectors_ND)
        id_kind = write_item_ids(staged.path, item_ids)
        np.save(staged.path / POPULAR, _most_popular(run, len(vectors_ND)))
        rows_PL, lengths_P = _probe_histories(run, len(vectors_ND))
        factory, reason = factory_for(index, len(vectors_ND), config.embedding_dim)
        if reason is not None:
            say(f"index {factory}: {reason}")
        bar.advance()

        bar.note("encoder")
        difference = export_encoder(
            model.encoder,
            num_interests=config.num_interests,
            embedding_dim=config.embedding_dim,
            max_history_length=config.max_history_length,
            space=space,
            path=staged.path / ENCODER,
        )
        bar.advance()

        bar.note("golden queries")
        exported = OnnxEncoder((staged.path / ENCODER).read_bytes())
        chosen = _spread(len(rows_PL), NUM_GOLDEN_QUERIES)
        rows_QL, lengths_Q = rows_PL[chosen], lengths_P[chosen]
        golden = _golden_queries(exported, vectors_ND, rows_QL, lengths_Q)
        golden.write(staged.path / GOLDEN)
        difference = max(
            difference,
            compare(
                model.encoder.cpu().eval(), exported, vectors_ND[rows_QL], lengths_Q, config.num_interests
            ),
        )
        bar.advance()

        bar.note(f"index {factory}")
        tuning = _spread(len(rows_PL), num_queries_for(len(vectors_ND), config.num_interests))
        index_info = make_index(
            factory,
            vectors_ND,
            _interests(exported, vectors_ND, rows_PL[tuning], lengths_P[tuning]),
            golden.interests_QKD,
            goal,
            staged.path,
            num_golden_candidates=golden.candidate_rows_QM.shape[1],
            reason=reason,
        )
        bar.advance()

        bar.note("checksums")
        version = staged.publish(
            model=ModelInfo(
                name=config.model,
                num_interests=config.num_interests,
                embedding_dim=config.embedding_dim,
                max_history_length=config.max_history_length,
                space=space,
            ),
            index=index_info,
            items=ItemsInfo(num_items=len(vectors_ND), id_kind=id_kind, space=space),
            evaluation=run.evaluation(),
            lineage={
                "run": run.path.resolve().name,
                "code_version": __version__,
                "torch": torch.__version__,
                "faiss": faiss.__version__,
                "onnxruntime": onnxruntime.__version__,
                "config": config.to_json(),
                ENCODER_DIFFERENCE: difference,
            },
        )
        bar.advance()
    return version


def space_of(vectors_ND: NDArray[np.float32]) -> str:
    """Fingerprint of trained item vectors: SHA-256 of their bytes, float32, little-endian, C order."""
    return hashlib.sha256(np.ascontiguousarray(vectors_ND, "<f4").data).hexdigest()


def _items(run: RunToExport, model: ModelToExport) -> tuple[NDArray[np.float32], list[Any]]:
    """Item vectors and ids, checked against each other."""
    vectors_ND = np.ascontiguousarray(model.item_vectors_ND().detach().cpu().numpy(), np.float32)
    item_ids = run.items()["item_id"].to_list()
    if not item_ids:
        raise ExportError(f"{run.path}: the run has no items: nothing can be retrieved from it")
    if vectors_ND.shape != (len(item_ids), run.config.embedding_dim):
        raise ExportError(
            f"{run.path}: item vectors of shape {vectors_ND.shape} for {len(item_ids)} items of width "
            f"{run.config.embedding_dim}: the run is damaged. Train it again"
        )
    wrong = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if wrong.size:
        raise ExportError(
            f"{run.path}: the vector of item {item_ids[wrong[0]]!r} (row {wrong[0]}) is not finite, nor are "
            f"those of {wrong.size - 1} others: training went astray. See its metrics, and train it again"
        )
    return vectors_ND, item_ids


def _most_popular(run: RunToExport, num_items: int) -> NDArray[np.int64]:
    counts_N = run.item_counts_N()
    if counts_N.shape != (num_items,):
        raise ExportError(f"{run.path}: {len(counts_N)} item counts for {num_items} items. Train it again")
    return np.argsort(-counts_N, kind="stable")[:MAX_NUM_POPULAR].astype(np.int64)


def _probe_histories(run: RunToExport, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The run's real histories, checked: rows_PL and lengths_P."""
    rows_PL, lengths_P = run.probe_histories()
    if len(rows_PL) == 0:
        raise ExportError(
            f"{run.path}: holds no held-out histories to make golden queries of. Train it again"
        )
    longest = min(rows_PL.shape[1], run.config.max_history_length)
    for name, seen, low, high in (("row", rows_PL, 0, num_items - 1), ("length", lengths_P, 1, longest)):
        if not low <= seen.min() <= seen.max() <= high:
            raise ExportError(
                f"{run.path}: held-out histories with a {name} from {seen.min()} to {seen.max()}; {low} to "
                f"{high} is allowed: the run is damaged. Train it again"
            )
    return rows_PL, lengths_P


def _spread(num: int, num_wanted: int) -> NDArray[np.int64]:
    """Places of at most so many, evenly over all."""
    return np.unique(np.linspace(0, num - 1, num_wanted).round().astype(np.int64))


def _interests(
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


def _golden_queries(
    exported: OnnxEncoder,
    vectors_ND: NDArray[np.float32],
    rows_QL: NDArray[np.int64],
    lengths_Q: NDArray[np.int64],
) -> GoldenQueries:
    """What the exported encoder and exact search answer to histories."""
    interests_QKD, _ = exported(vectors_ND[rows_QL], lengths_Q)
    candidate_rows_QM, scores_QM = exact_candidates(
        interests_QKD, vectors_ND, min(NUM_GOLDEN_CANDIDATES, len(vectors_ND))
    )
    return GoldenQueries(
        rows_QL=rows_QL,
        lengths_Q=lengths_Q,
        interests_QKD=interests_QKD,
        candidate_rows_QM=candidate_rows_QM,
        scores_QM=scores_QM,
    )
