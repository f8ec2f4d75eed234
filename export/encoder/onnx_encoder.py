"""Export of a trained encoder to an ONNX file, which is checked before it is written: the forward flow alone.

The graph takes item *vectors*, so it holds no item table. It holds exactly the encoder's own parameters,
under their own names. The exporter's graph optimisation is off: ONNX Runtime folds the same constants when it
loads the graph, and parameters whose names are kept can be compared.

Legend: B batch, L history length, K interests, D embedding.
"""

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from re4.common.errors import ExportError
from re4.exporting.encoder.onnx_runner import INPUTS, OUTPUTS, OnnxEncoder
from re4.exporting.encoder.parity import check_parity

MAX_GRAPH_BYTES: Final = 1 << 20
"""Largest graph, its parameters not counted; a larger graph contains a table."""

SPACE_KEY: Final = "re4.space"
"""Metadata key of the file: fingerprint of the item vectors that the encoder was trained with."""

_EXAMPLE_BATCH: Final = 3  # a dimension of 1 would be exported as the constant 1
_EXAMPLE_LENGTH: Final = 2
_STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx"})


def export_encoder(
    encoder: nn.Module,
    *,
    num_interests: int,
    embedding_dim: int,
    max_history_length: int,
    space: str,
    path: Path,
) -> float:
    """Write an encoder as an ONNX file, after a check that the file computes the same.

    Args:
        encoder: `forward(history_vectors_BLD, lengths_B)` gives `(interests_BKD, attention_BKL)`.
        num_interests: K.
        embedding_dim: D.
        max_history_length: L, the longest history that the encoder will be given.
        space: Fingerprint of the item vectors that the encoder was trained with.
        path: The file to write.

    Returns:
        The largest absolute difference between PyTorch and ONNX Runtime.

    Raises:
        ExportError: the encoder cannot be exported; or the graph holds more or less than its parameters, or
            computes something else. Nothing is written then.
    """
    trained = copy.deepcopy(encoder).cpu().eval()
    model = _convert(trained, embedding_dim)
    _strip_source_info(model)
    facts = {
        SPACE_KEY: space,
        "re4.num_interests": str(num_interests),
        "re4.embedding_dim": str(embedding_dim),
        "re4.max_history_length": str(max_history_length),
    }
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    check_graph(model, trained)
    content = model.SerializeToString()
    difference = check_parity(
        trained,
        OnnxEncoder(content),
        num_interests=num_interests,
        embedding_dim=embedding_dim,
        max_history_length=max_history_length,
    )
    path.write_bytes(content)
    return difference


def list_initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return everything that the graph holds, by name: the encoder's parameters."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def check_graph(model: onnx.ModelProto, encoder: nn.Module) -> None:
    """Check that a graph holds exactly an encoder's parameters, and refers to nothing outside itself.

    Raises:
        ExportError: naming what is missing, extra or changed.
    """
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ExportError(f"{tensor.name}: its data lies outside the ONNX file")
    strange = {node.domain for node in model.graph.node} - _STANDARD_DOMAINS
    if strange or model.functions:
        raise ExportError(
            f"the graph uses operators beyond ONNX's own ({sorted(strange)}): no server loads it"
        )
    expected = {
        name: tensor.detach().numpy()
        for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())
    }
    held = list_initializers(model)
    if held.keys() != expected.keys():
        raise ExportError(
            "the graph must hold exactly the encoder's parameters: "
            f"missing (not used by its forward flow) {sorted(expected.keys() - held.keys())}, "
            f"extra {sorted(held.keys() - expected.keys())}"
        )
    for name, value in expected.items():
        if (held[name].dtype, held[name].tobytes()) != (value.dtype, value.tobytes()):
            raise ExportError(f"{name}: the graph holds other values than the encoder")
    num_graph_bytes = model.ByteSize() - sum(value.nbytes for value in expected.values())
    if num_graph_bytes >= MAX_GRAPH_BYTES:
        raise ExportError(
            f"the graph has {num_graph_bytes} bytes beside its parameters, {MAX_GRAPH_BYTES} are too many"
        )


def _convert(encoder: nn.Module, embedding_dim: int) -> onnx.ModelProto:
    example = (
        torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_LENGTH, embedding_dim),
        torch.ones(_EXAMPLE_BATCH, dtype=torch.int64),
    )
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    try:
        with _silenced():
            program = torch.onnx.export(
                encoder,
                example,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: batch, 1: length}, {0: batch}),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"PyTorch cannot export this encoder to ONNX: {reason}") from error
    if program is None:
        raise ExportError("PyTorch gave no ONNX program for this encoder")
    return program.model_proto


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide the exporter's warnings, and its log below errors."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _strip_source_info(model: onnx.ModelProto) -> None:
    """Remove stack traces, source paths and intermediate shapes: half of the file, and private."""
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _tensors(model: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
