"""Reject an ONNX model that refers to anything outside its own bytes, before ONNX Runtime loads it.

A tensor may take its data from an external file, by any path. A function or an operator of another
domain may bring its own code. An encoder needs neither. The model is read as bare protobuf fields,
so that the server does not need the `onnx` package. Field numbers are those of onnx.proto.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from re4.common.errors import BundleDamagedError

MAX_MODEL_BYTES: Final = 64 << 20
"""A forward flow without an item table is well under 1 MB."""

_MAX_DEPTH: Final = 32
_LENGTH_DELIMITED: Final = 2
_VARINT: Final = 0
_STANDARD_DOMAINS: Final = frozenset({b"", b"ai.onnx"})

_CHILDREN: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_NODE_DOMAIN: Final = 7
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14


def reject_external_references(model: bytes, *, where: str) -> None:
    """Check that a model consists of its own bytes and standard operators only.

    Args:
        model: The serialised ModelProto.
        where: Name of the file in error messages.

    Raises:
        BundleDamagedError: not a protobuf message, too large or too deep, external data, or an
            operator of a domain other than ONNX's own.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise BundleDamagedError(f"{where}: {len(model)} bytes, an encoder has at most {MAX_MODEL_BYTES}")
    _check("ModelProto", model, where, depth=0)


def _check(message: str, data: bytes, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BundleDamagedError(f"{where}: graphs nested more than {_MAX_DEPTH} deep")
    try:
        fields: Any = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        raise BundleDamagedError(f"{where}: not an ONNX model (a {message} cannot be parsed)") from None
    children = _CHILDREN[message]
    for field in fields:
        number, wire_type, value = field.field_number, field.wire_type, field.data
        if message == "TensorProto" and (
            number == _TENSOR_EXTERNAL_DATA
            or (number == _TENSOR_DATA_LOCATION and wire_type == _VARINT and value != 0)
        ):
            raise BundleDamagedError(f"{where}: takes a tensor's data from another file; export it into one")
        if wire_type != _LENGTH_DELIMITED:
            continue
        if message == "NodeProto" and number == _NODE_DOMAIN and value not in _STANDARD_DOMAINS:
            raise BundleDamagedError(
                f"{where}: uses an operator of the domain {value!r}; only ONNX's own operators are allowed"
            )
        if number in children:
            _check(children[number], value, where, depth + 1)
