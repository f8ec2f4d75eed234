"""The decoding of requests, with an error that names the field that is not valid UTF-8.

gRPC's own deserialisers answer INTERNAL, and name no field, when a message cannot be parsed.
"""

from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from re4.common.errors import RequestError

_LENGTH_DELIMITED: Final = 2

MessageT = TypeVar("MessageT", bound=Message)


def decode(message_type: type[MessageT], data: bytes) -> MessageT:
    """Parse a request.

    Raises:
        RequestError: the bytes are not such a message; names the field whose text is not UTF-8.
    """
    try:
        return message_type.FromString(data)
    except DecodeError:
        field = _field_not_utf8(message_type.DESCRIPTOR, data, "")
    name = message_type.DESCRIPTOR.full_name
    if field is None:
        raise RequestError(f"the request's {len(data)} bytes are not a {name} message")
    raise RequestError(f"{field} is not valid UTF-8; ids of the {name} message must be UTF-8 text")


def _field_not_utf8(descriptor: Any, data: bytes, prefix: str) -> str | None:
    """Return the first field that is not UTF-8, such as `history.strings[3]`; None for none."""
    try:
        # An empty message keeps every field as an unknown one, thus as bytes that are not checked.
        found: Any = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    num_seen: dict[int, int] = {}
    for raw in found:
        field = descriptor.fields_by_number.get(raw.field_number)
        if field is None or raw.wire_type != _LENGTH_DELIMITED:
            continue
        place = num_seen.get(field.number, 0)
        num_seen[field.number] = place + 1
        path = f"{prefix}{field.name}"
        if field.message_type is not None:
            outer = f"{path}[{place}]" if field.is_repeated else path
            inner = _field_not_utf8(field.message_type, raw.data, f"{outer}.")
            if inner is not None:
                return inner
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(raw.data):
            return f"{path}[{place}]" if field.is_repeated else path
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
