"""Requests that nobody sends in good faith: built from the contract's own fields, and damaged on the wire.

Whatever is added to the contract is part of it by itself: strategies follow the messages' descriptors. Knows
nothing of what the server ought to answer.
"""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from re4.protos.v1 import retrieval_pb2 as pb

REQUESTS: dict[str, type[Message]] = {
    method.name: GetMessageClass(method.input_type)
    for method in pb.DESCRIPTOR.services_by_name["Retrieval"].methods
}
"""Method and its request."""

_MAX_DEPTH = 5
"""Messages within messages."""
_TIMES = (*[1] * 12, 2, 300)
"""How often the few values of a list are repeated; in a list within a list, once."""

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_USUAL = (0, 1, 2, 5, 10, 60, 256, 257, 1000, 1001, 10_000, 10_001, 65_536)
_NUMBERS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e30, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "\0", "a\0b", " ", "../../etc/passwd", "%s%n", "é" * 512, "é" * 513, "x" * 5_000, "\U0010ffff")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a server knows: values that lead a request past the first checks."""

    texts: Sequence[str]
    numbers: Sequence[int]


def requests(method: str, known: Known) -> st.SearchStrategy[Message]:
    """Requests of a method with any fields set to any values, known ones among them."""
    return _messages(REQUESTS[method].DESCRIPTOR, known, _MAX_DEPTH, _TIMES)


def _messages(
    descriptor: Descriptor, known: Known, depth: int, times: Sequence[int]
) -> st.SearchStrategy[Message]:
    fields = {
        field.name: _values(field, known, depth, times)
        for field in descriptor.fields
        if depth or field.message_type is None
    }
    message_class = GetMessageClass(descriptor)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: message_class(**values))


def _values(field: FieldDescriptor, known: Known, depth: int, times: Sequence[int]) -> st.SearchStrategy[Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        entry = message.fields_by_name
        key, value = (_values(entry[name], known, depth - 1, (1,)) for name in ("key", "value"))
        return st.dictionaries(key, value, max_size=3)
    if message is not None:
        inner = (1,) if field.is_repeated else times
        single: st.SearchStrategy[Any] = _messages(message, known, depth - 1, inner)
    else:
        single = _scalars(field, known)
    if not field.is_repeated:
        return single
    few = st.lists(single, max_size=4)
    return st.tuples(few, st.sampled_from(times)).map(lambda drawn: drawn[0] * drawn[1])


def _scalars(field: FieldDescriptor, known: Known) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        texts = st.sampled_from(_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
        return st.sampled_from(known.texts) | texts if known.texts else texts
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        numbers = st.sampled_from([*_USUAL, low, high]) | st.integers(low, high)
        return st.sampled_from(known.numbers) | numbers if known.numbers and low < 0 else numbers
    if field.type == FieldDescriptor.TYPE_ENUM:
        values = [value.number for value in field.enum_type.values]
        return st.sampled_from([*values, *values, -1, max(values) + 1, 2**31 - 1, -(2**31)])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return st.sampled_from(_NUMBERS) | st.floats(width=32)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=30)
    raise TypeError(f"{field.full_name}: no hostile values for a field of type {field.type}")


def damaged_bytes(valid: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the valid messages, damaged on the wire; or no message at all.

    Args:
        valid: Serialised requests, as a caller in good faith sends them.
        rng: Chooses message and damage.
    """
    damage = rng.choice(_DAMAGES)
    return damage(rng.choice(valid), rng.choice(valid), rng)


def _flip_bits(data: bytes, _: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))) if data else ():
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut_off(data: bytes, _: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _insert(data: bytes, _: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randrange(1, 20)) + data[place:]


def _noise(_: bytes, __: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 5, 50, 500, 5000)))


def _wrong_number(data: bytes, _: bytes, rng: random.Random) -> bytes:
    """A field of any number and wire type, with a value out of its range."""
    key = _varint(
        rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 15, 16, 19_000, 2**29 - 1, 2**29)) << 3 | rng.randrange(8)
    )
    value = rng.choice(
        (_varint(2**64 - 1), b"\xff" * 11, struct.pack("<d", float("nan")), _varint(2**31), b"")
    )
    return data + key + value


def _nested(_: bytes, __: bytes, rng: random.Random) -> bytes:
    """Messages in messages in messages, or groups that never end."""
    depth = rng.choice((10, 99, 100, 101, 1000))
    if rng.random() < 0.5:
        return b"\x0b" * depth
    data = b""
    for _ in range(depth):
        data = b"\x0a" + _varint(len(data)) + data
    return data


def _too_long(data: bytes, _: bytes, rng: random.Random) -> bytes:
    """A text whose stated length is not there."""
    return data + b"\x0a" + _varint(rng.choice((2**31 - 1, 2**31, 2**32 - 1, 2**63))) + b"x"


_DAMAGES: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _cut_off,
    _cut_off,
    _splice,
    _insert,
    _noise,
    _wrong_number,
    _nested,
    _too_long,
)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
