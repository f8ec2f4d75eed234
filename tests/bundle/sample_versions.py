"""Small versions to publish: three items, two dimensions. Used by fixtures and by child processes."""

from pathlib import Path

import numpy as np

from re4.bundle.golden import GoldenQueries
from re4.bundle.ids.id_map import write_item_ids
from re4.bundle.layout import ENCODER, GOLDEN, INDEX, POPULAR, VECTORS
from re4.bundle.manifest import AttributeInfo, IndexInfo, ItemsInfo, ModelInfo
from re4.bundle.publishing.publish import StagedVersion, stage_version

SPACE = "5" * 64


def fill(folder: Path, content: str) -> None:
    """Write every file of a version of three items; encoder and index are not parsed by this folder."""
    np.save(folder / VECTORS, np.arange(6, dtype=np.float32).reshape(3, 2))
    np.save(folder / POPULAR, np.array([2, 0, 1]))
    (folder / ENCODER).write_bytes(f"encoder {content}".encode())
    (folder / INDEX).write_bytes(f"index {content}".encode() * 100)
    write_item_ids(folder, ["a", "b", "c"])
    GoldenQueries(
        rows_QL=np.array([[1, 0]]),
        lengths_Q=np.array([2]),
        interests_QKD=np.ones((1, 1, 2), np.float32),
        candidate_rows_QM=np.array([[2, 1, 0]]),
        scores_QM=np.array([[9, 5, 1]], np.float32),
    ).write(folder / GOLDEN)


def publish_staged(
    staged: StagedVersion,
    *,
    model_space: str = SPACE,
    recall: float = 0.5,
    attributes: tuple[AttributeInfo, ...] = (),
    is_live: bool = True,
) -> str:
    return staged.publish(
        model=ModelInfo(
            name="re4", num_interests=1, embedding_dim=2, max_history_length=2, space=model_space
        ),
        index=IndexInfo(kind="flat"),
        items=ItemsInfo(num_items=3, id_kind="string", space=SPACE, attributes=attributes),
        evaluation={"test": {"recall@50": recall}},
        lineage={"run": "runs/one"},
        is_live=is_live,
    )


def publish_one(bundles: Path, content: str = "one") -> Path:
    with stage_version(bundles) as staged:
        fill(staged.path, content)
        return bundles / publish_staged(staged)
