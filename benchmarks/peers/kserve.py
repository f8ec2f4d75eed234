"""The messages of Triton's gRPC method: the fields of the open inference protocol that are needed here.

They are built in this module, so that the load client needs nothing of the peer's environment.
"""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_PACKAGE: Final = "re4.benchmarks.kserve"
_FILE: Final = """
name: "kserve.proto" package: "re4.benchmarks.kserve" syntax: "proto3"
message_type {
  name: "Tensor"
  field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "datatype" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "shape" number: 3 label: LABEL_REPEATED type: TYPE_INT64 }
}
message_type {
  name: "ModelInferRequest"
  field { name: "model_name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "inputs" number: 5 label: LABEL_REPEATED type_name: "Tensor" }
  field { name: "raw_input_contents" number: 7 label: LABEL_REPEATED type: TYPE_BYTES }
}
message_type {
  name: "ModelInferResponse"
  field { name: "outputs" number: 5 label: LABEL_REPEATED type_name: "Tensor" }
  field { name: "raw_output_contents" number: 6 label: LABEL_REPEATED type: TYPE_BYTES }
}
"""


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_FILE, FileDescriptorProto()))
_Tensor, _Request, _Response = map(_message, ("Tensor", "ModelInferRequest", "ModelInferResponse"))


def request(model: str, name: str, values: Sequence[bytes]) -> bytes:
    """Serialise a request with one tensor of bytes, in a batch of one."""
    packed = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    tensor = _Tensor(name=name, datatype="BYTES", shape=[1, len(values)])
    data: bytes = _Request(model_name=model, inputs=[tensor], raw_input_contents=[packed]).SerializeToString()
    return data


def bytes_of(reply: bytes, name: str) -> list[bytes]:
    """Return the values of a reply's tensor of bytes."""
    found = _Response.FromString(reply)
    place = [output.name for output in found.outputs].index(name)
    packed = found.raw_output_contents[place]
    values, at = [], 0
    while at < len(packed):
        end = at + 4 + int.from_bytes(packed[at : at + 4], "little")
        values.append(packed[at + 4 : end])
        at = end
    return values
