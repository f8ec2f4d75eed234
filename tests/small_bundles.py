"""Small versions with a hand-made encoder: built in milliseconds, and computed again in NumPy.

Everything follows from a seed. `SmallVersion` has the weights, so that tests can compute the right answer
without asking the code under test.
"""

from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from re4.bundle.attributes.writer import write_attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.ids.id_map import write_item_ids
from re4.bundle.layout import ENCODER, GOLDEN, INDEX, POPULAR, VECTORS
from re4.bundle.manifest import CollectionInfo, IndexInfo, ItemsInfo, ModelInfo
from re4.bundle.publishing.publish import stage_version
from re4.bundle.titles import write_titles
from re4.bundle.verify import verify_version
from re4.serving.versions.snapshot import Snapshot, load_snapshot

NUM_INTERESTS = 3
EMBEDDING_DIM = 8
HIDDEN = 5
MAX_HISTORY = 6


@dataclass(kw_only=True)
class SmallVersion:
    """The parts of a version; a test may change fields before the publication."""

    seed: int = 0
    num_items: int = 60
    id_kind: str = "string"
    space: str = "a" * 64
    encoder_space: str | None = None
    index_kind: str = "flat"
    collection: CollectionInfo | None = None
    """Where the index is, if it is in Milvus; nothing is made there."""
    num_golden: int = 6
    encoder: bytes | None = None
    index: bytes | None = None
    has_attributes: bool = False
    has_titles: bool = False
    vectors_ND: np.ndarray = field(init=False)
    attributes: dict[str, list[object]] = field(init=False)
    """Of each item: one colour or none, any number of tags, whether its row is even, and row / 4 as price."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.vectors_ND = rng.standard_normal((self.num_items, EMBEDDING_DIM)).astype(np.float32)
        self.W1_DH = rng.standard_normal((EMBEDDING_DIM, HIDDEN)).astype(np.float32)
        self.w_HK = 2 * rng.standard_normal((HIDDEN, NUM_INTERESTS)).astype(np.float32)
        self.W2_DD = rng.standard_normal((EMBEDDING_DIM, EMBEDDING_DIM)).astype(np.float32)
        self.attributes = self._attributes() if self.has_attributes else {}
        self.popular_rows = rng.permutation(self.num_items)[: self.num_items // 2]

    def _attributes(self) -> dict[str, list[object]]:
        rng = np.random.default_rng(self.seed + 2)
        colours = rng.choice(["red", "green", "blue", ""], self.num_items).tolist()
        tags = [[tag for tag in "abcde" if rng.random() < 0.3] for _ in range(self.num_items)]
        rows = range(self.num_items)
        return {
            "colour": colours,
            "tags": tags,
            "is_even": [row % 2 == 0 for row in rows],
            "price": [row / 4 for row in rows],
        }

    @property
    def ids(self) -> list[str] | list[int]:
        if self.id_kind == "int":
            return [1000 + 7 * row for row in range(self.num_items)]
        return [f"item-{row}-é" for row in range(self.num_items)]

    @property
    def titles(self) -> list[str]:
        """A title for each item but the last; words repeat, and one has another case and accents."""
        kinds = ("Red Bicycle", "Blue <b>Kettle</b>", "ÉCLAIR au café")
        return [*(f"{kinds[row % 3]} {row}" for row in range(self.num_items - 1)), ""]

    def encode(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return interests [K, D] and attention [K, length] of a history, oldest row first, in float64."""
        x_LD = self.vectors_ND[rows[-MAX_HISTORY:]].astype(np.float64)
        logits_LK = np.tanh(x_LD @ self.W1_DH) @ self.w_HK
        attention_LK = np.exp(logits_LK - logits_LK.max(axis=0))
        attention_LK /= attention_LK.sum(axis=0)
        return attention_LK.T @ (x_LD @ self.W2_DD), attention_LK.T

    def scores(self, rows: list[int]) -> np.ndarray:
        """Return the score of every item, [N], for a history of rows, oldest first."""
        return (self.encode(rows)[0] @ self.vectors_ND.T.astype(np.float64)).max(axis=0)

    def best(self, rows: list[int], num_candidates: int, excluded: list[int] = ()) -> list[int]:
        """Return the exact candidates, by scoring the whole catalogue."""
        scores_N = self.scores(rows)
        allowed = [row for row in range(self.num_items) if row not in set(excluded)]
        return sorted(allowed, key=lambda row: (-scores_N[row], row))[:num_candidates]

    def publish(self, bundles: Path) -> str:
        """Write and publish the version; return its name."""
        with stage_version(bundles) as staged:
            self.write(staged.path)
            attributes = write_attributes(staged.path, self.attributes, self.num_items)
            return staged.publish(
                model=ModelInfo(
                    name="re4",
                    num_interests=NUM_INTERESTS,
                    embedding_dim=EMBEDDING_DIM,
                    max_history_length=MAX_HISTORY,
                    space=self.space,
                ),
                index=IndexInfo(kind=self.index_kind, collection=self.collection),
                items=ItemsInfo(
                    num_items=self.num_items, id_kind=self.id_kind, space=self.space, attributes=attributes
                ),
                evaluation={},
                lineage={"seed": self.seed},
            )

    def write(self, folder: Path) -> None:
        index = faiss.IndexFlatIP(EMBEDDING_DIM)
        index.add(self.vectors_ND)
        serialised = faiss.serialize_index(index).tobytes()
        np.save(folder / VECTORS, self.vectors_ND)
        np.save(folder / POPULAR, self.popular_rows)
        (folder / INDEX).write_bytes(self.index if self.index is not None else serialised)
        (folder / ENCODER).write_bytes(self.encoder if self.encoder is not None else self.encoder_bytes())
        write_item_ids(folder, self.ids)
        if self.has_titles:
            write_titles(folder, self.titles)
        self.golden().write(folder / GOLDEN)

    def golden(self) -> GoldenQueries:
        rng = np.random.default_rng(self.seed + 1)
        rows_QL = rng.integers(self.num_items, size=(self.num_golden, MAX_HISTORY))
        lengths_Q = 1 + np.arange(self.num_golden) % MAX_HISTORY
        rows_QL[np.arange(MAX_HISTORY) >= lengths_Q[:, None]] = 0
        histories = [rows[:length][::-1].tolist() for rows, length in zip(rows_QL, lengths_Q, strict=True)]
        candidates = [self.best(history, 10) for history in histories]
        return GoldenQueries(
            rows_QL=rows_QL,
            lengths_Q=lengths_Q,
            interests_QKD=np.stack([self.encode(history)[0] for history in histories]),
            candidate_rows_QM=np.array(candidates),
            scores_QM=np.stack(
                [self.scores(history)[rows] for history, rows in zip(histories, candidates, strict=True)]
            ),
        )

    def encoder_model(self) -> onnx.ModelProto:
        """Masked attention as an ONNX graph, batch and length free."""
        nodes = [
            helper.make_node("MatMul", ["history_vectors", "W1"], ["projected"]),
            helper.make_node("Tanh", ["projected"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "w"], ["logits_BLK"]),
            helper.make_node("Transpose", ["logits_BLK"], ["logits"], perm=[0, 2, 1]),
            helper.make_node("Shape", ["history_vectors"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["length"]),
            helper.make_node("Range", ["zero", "length", "one"], ["positions"]),
            helper.make_node("Unsqueeze", ["lengths", "axes"], ["lengths_B11"]),
            helper.make_node("Less", ["positions", "lengths_B11"], ["is_real"]),
            helper.make_node("Where", ["is_real", "logits", "minus_infinity"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["attention"], axis=-1),
            helper.make_node("MatMul", ["history_vectors", "W2"], ["values"]),
            helper.make_node("MatMul", ["attention", "values"], ["interests"]),
        ]
        constants = {
            "W1": self.W1_DH,
            "w": self.w_HK,
            "W2": self.W2_DD,
            "zero": np.array(0),
            "one": np.array(1),
            "axes": np.array([1, 2]),
            "minus_infinity": np.array(-np.inf, np.float32),
        }
        graph = helper.make_graph(
            nodes,
            "encoder",
            [
                helper.make_tensor_value_info(
                    "history_vectors", TensorProto.FLOAT, ["B", "L", EMBEDDING_DIM]
                ),
                helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
            ],
            [
                helper.make_tensor_value_info(
                    "interests", TensorProto.FLOAT, ["B", NUM_INTERESTS, EMBEDDING_DIM]
                ),
                helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["B", NUM_INTERESTS, "L"]),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {"re4.space": self.encoder_space or self.space})
        return model

    def encoder_bytes(self) -> bytes:
        return self.encoder_model().SerializeToString()


def load(version: SmallVersion, bundles: Path, *, max_batch_size: int = 8) -> Snapshot:
    """Publish a version and load it in this process."""
    path = bundles / version.publish(bundles)
    return load_snapshot(path, verify_version(path), max_batch_size=max_batch_size)
