"""Versions that must never go live. Each appears by one rename, as a published one does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import onnx
from onnx import TensorProto, helper
from small_bundles import EMBEDDING_DIM, MAX_HISTORY, NUM_INTERESTS, SmallVersion

from re4.bundle.layout import CURRENT, ENCODER, GOLDEN, INDEX, MANIFEST, VECTORS


def point_current_at(bundles: Path, name: str) -> None:
    (bundles / "next").write_text(f"{name}\n")
    (bundles / "next").replace(bundles / CURRENT)


def publish(bundles: Path, version: SmallVersion, damage: Callable[[Path], None] = lambda path: None) -> str:
    """Publish a version elsewhere, damage it, and make it live here by one rename; return its name."""
    elsewhere = bundles.parent / f"elsewhere-{os.urandom(4).hex()}"
    name = version.publish(elsewhere)
    damage(elsewhere / name)
    (elsewhere / name).rename(bundles / name)
    shutil.rmtree(elsewhere)
    point_current_at(bundles, name)
    return name


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_files(first: Path, second: Path) -> None:
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


CHANGED_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda path: os.truncate(path / INDEX, 100), "items.faiss: 100 bytes, the manifest says"),
    "a flipped bit": (lambda path: flip_a_bit(path / ENCODER), "encoder.onnx: SHA-256"),
    "missing": (lambda path: (path / VECTORS).unlink(), "vectors.npy: missing"),
    "swapped": (lambda path: swap_files(path / GOLDEN, path / VECTORS), "bytes, the manifest says"),
    "extra": (lambda path: (path / "extra.so").write_bytes(b"x"), "extra.so: not part of the version"),
    "manifest cut off": (lambda path: os.truncate(path / MANIFEST, 50), "manifest.json"),
    "empty": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json"),
}
"""Damage that the checksums detect, and the text of the refusal."""


def noise(length: int) -> bytes:
    return np.random.default_rng(0).bytes(length)


def serialised(factory: str, vectors_ND: np.ndarray, metric: int = faiss.METRIC_INNER_PRODUCT) -> bytes:
    index = faiss.index_factory(EMBEDDING_DIM, factory, metric)
    index.add(vectors_ND)
    return faiss.serialize_index(index).tobytes()


def with_external_data(version: SmallVersion) -> bytes:
    model = version.encoder_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return model.SerializeToString()


def with_external_data_in_a_subgraph(version: SmallVersion) -> bytes:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="/dev/zero")
    branch = helper.make_graph([helper.make_node("Constant", [], ["inner"], value=tensor)], "branch", [], [])
    model = version.encoder_model()
    model.graph.node.append(
        helper.make_node("If", ["one"], ["never"], then_branch=branch, else_branch=branch)
    )
    return model.SerializeToString()


def with_foreign_operator(version: SmallVersion) -> bytes:
    model = version.encoder_model()
    model.graph.node[1].domain = "com.example"
    return model.SerializeToString()


def constant_encoder(
    version: SmallVersion, nodes: list[onnx.NodeProto], extra: list[onnx.TensorProto]
) -> bytes:
    """Make the usual encoder with more nodes before it; the last of them makes `w`."""
    model = version.encoder_model()
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *extra])
    usual = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *usual])
    return model.SerializeToString()


def memory_bomb(version: SmallVersion) -> bytes:
    """Make an encoder of a few hundred bytes that allocates 2^46 bytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["everything"]),
        helper.make_node("Slice", ["everything", "start", "end"], ["w"]),
    ]
    extra = [
        helper.make_tensor("huge", TensorProto.INT64, [2], [1 << 22, 1 << 22]),
        helper.make_tensor("start", TensorProto.INT64, [2], [0, 0]),
        helper.make_tensor("end", TensorProto.INT64, [2], [5, NUM_INTERESTS]),
    ]
    return constant_encoder(version, nodes, extra)


def endless_loop(version: SmallVersion) -> bytes:
    """Make an encoder with an endless loop."""
    shape = [5, NUM_INTERESTS]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["still"]),
            helper.make_node("Add", ["before", "before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, shape),
        ],
    )
    nodes = [helper.make_node("Loop", ["trips", "yes", "w0"], ["w"], body=body)]
    extra = [
        helper.make_tensor("trips", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("w0", TensorProto.FLOAT, shape, [0.0] * (5 * NUM_INTERESTS)),
    ]
    return constant_encoder(version, nodes, extra)


def with_other_dimensions(version: SmallVersion) -> bytes:
    """Make an encoder with one interest fewer than in the manifest."""
    version.w_HK = version.w_HK[:, 1:]
    return version.encoder_bytes()


def _other(**changes: object) -> SmallVersion:
    """A version whose parts are of seed 1, but for what is changed."""
    version = SmallVersion(seed=1)
    for name, value in changes.items():
        setattr(version, name, value(version) if callable(value) else value)
    return version


def _not_finite() -> SmallVersion:
    version = SmallVersion(seed=1)
    version.vectors_ND[17, 3] = np.nan
    golden = SmallVersion(seed=1).golden()
    version.golden = lambda: golden
    return version


def _false_golden() -> SmallVersion:
    version = SmallVersion(seed=1)
    golden = version.golden()
    golden.candidate_rows_QM[2] = np.roll(golden.candidate_rows_QM[2], 1)
    version.golden = lambda: golden
    return version


STRANGER = SmallVersion(seed=2)

WRONG_PARTS: dict[str, tuple[Callable[[], SmallVersion], str]] = {
    "encoder of another run": (
        lambda: _other(encoder_space="b" * 64),
        "Encoder and items must come from one run",
    ),
    "encoder of another run that hides it": (
        lambda: _other(encoder=STRANGER.encoder_bytes()),
        "the encoder and the item vectors do not belong together",
    ),
    "index of another catalogue": (
        lambda: _other(index=serialised("Flat", STRANGER.vectors_ND)),
        "they are not of one catalogue",
    ),
    "index of fewer items": (
        lambda: _other(index=lambda version: serialised("Flat", version.vectors_ND[:-1])),
        "59 items of 8 dimensions",
    ),
    "index of another metric": (
        lambda: _other(index=lambda version: serialised("Flat", version.vectors_ND, faiss.METRIC_L2)),
        "begins with b'IxF2'",
    ),
    "index of a kind not allowed": (
        lambda: _other(index=lambda version: serialised("HNSW4", version.vectors_ND)),
        "begins with b'IHNf', a flat index with b'IxFI'",
    ),
    "kind not allowed": (
        lambda: _other(index_kind="lattice"),
        "of the kind 'lattice'; this server may load flat",
    ),
    "index of noise": (lambda: _other(index=noise(5000)), "a flat index with b'IxFI'"),
    "index of noise behind the right signature": (
        lambda: _other(index=b"IxFI" + noise(5000)),
        "FAISS refuses it",
    ),
    "index with an enormous length": (
        lambda: _other(
            index=lambda version: (
                serialised("Flat", version.vectors_ND)[:37]
                + (1 << 60).to_bytes(8, "little")
                + version.vectors_ND.tobytes()
            )
        ),
        "FAISS refuses it",
    ),
    "index cut off": (
        lambda: _other(index=lambda version: serialised("Flat", version.vectors_ND)[:-400]),
        "FAISS refuses it",
    ),
    "encoder of noise": (lambda: _other(encoder=noise(5000)), "encoder.onnx: not an ONNX model"),
    "encoder with nothing in it": (lambda: _other(encoder=b""), "ONNX Runtime refuses it"),
    "encoder that takes data from another file": (
        lambda: _other(encoder=with_external_data),
        "takes a tensor's data from another file",
    ),
    "encoder that hides external data in a branch": (
        lambda: _other(encoder=with_external_data_in_a_subgraph),
        "takes a tensor's data from another file",
    ),
    "encoder with an operator of its own": (lambda: _other(encoder=with_foreign_operator), "b'com.example'"),
    "encoder that asks for all memory": (lambda: _other(encoder=memory_bomb), "encoder.onnx"),
    "encoder of other dimensions": (
        lambda: _other(encoder=lambda version: with_other_dimensions(SmallVersion(seed=1))),
        f"the manifest says (1, {NUM_INTERESTS}, {EMBEDDING_DIM}) and (1, {NUM_INTERESTS}, {MAX_HISTORY})",
    ),
    "a vector that is not finite": (_not_finite, "the vector of item row 17 is not finite"),
    "golden answers that are not right": (_false_golden, "golden query 2"),
    "popular rows that are no items": (
        lambda: _other(popular_rows=np.array([3, 60])),
        "popular.npy: rows from 3 to 60, the version has 60 items",
    ),
}
"""Versions with correct checksums and wrong parts, and the text of the refusal."""
