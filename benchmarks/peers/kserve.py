"""The messages of Triton's gRPC method: the fields of the open inference protocol that are needed here.

They are built in this module, so that the load client needs nothing of the peer's environment.
"""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_PACKAGE: Final = "re4.benchmarks.kserve"
_Field: Final = descriptor_pb2.FieldDescriptorProto
_FIELDS: Final[dict[str, Sequence[tuple[str, int, Any, bool]]]] = {
    "Tensor": [
        ("name", 1, _Field.TYPE_STRING, False),
        ("datatype", 2, _Field.TYPE_STRING, False),
        ("shape", 3, _Field.TYPE_INT64, True),
    ],
    "ModelInferRequest": [
        ("model_name", 1, _Field.TYPE_STRING, False),
        ("inputs", 5, "Tensor", True),
        ("raw_input_contents", 7, _Field.TYPE_BYTES, True),
    ],
    "ModelInferResponse": [
        ("outputs", 5, "Tensor", True),
        ("raw_output_contents", 6, _Field.TYPE_BYTES, True),
    ],
}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, is_repeated in fields:
            label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _FIELDS
    }


_MESSAGES: Final = _messages()


def request(model: str, name: str, values: Sequence[bytes]) -> bytes:
    """Serialise a request with one tensor of bytes, in a batch of one."""
    packed = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    tensor = _MESSAGES["Tensor"](name=name, datatype="BYTES", shape=[1, len(values)])
    data: bytes = _MESSAGES["ModelInferRequest"](
        model_name=model, inputs=[tensor], raw_input_contents=[packed]
    ).SerializeToString()
    return data


def bytes_of(reply: bytes, name: str) -> list[bytes]:
    """Return the values of a reply's tensor of bytes.

    Raises:
        ValueError: it has no such tensor.
    """
    found = _MESSAGES["ModelInferResponse"].FromString(reply)
    place = [output.name for output in found.outputs].index(name)
    packed = found.raw_output_contents[place]
    values, at = [], 0
    while at < len(packed):
        end = at + 4 + int.from_bytes(packed[at : at + 4], "little")
        values.append(packed[at + 4 : end])
        at = end
    return values
