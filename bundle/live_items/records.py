"""The records of live items: one checksummed record for each change, in the order of sequence numbers.

    length, CRC-32      of all that follows, 4 bytes each; the CRC also covers the length
    sequence, time      8 bytes each; the time is Unix milliseconds, for the measured lag only
    kind, JSON length   1 and 4 bytes
    JSON                id, attributes, embedding space, weight, numbers of events
    vector              float32, to the end of the record; may be empty

Numbers are little-endian. The order of changes is their sequence, never their time.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.columns import MAX_VALUE_BYTES
from re4.bundle.ids.string_keys import MAX_ID_BYTES
from re4.bundle.layout import IdKind
from re4.bundle.manifest import MAX_NUM_ATTRIBUTES
from re4.common.attribute_values import VALUE_TYPES, value_text
from re4.common.errors import BundleDamagedError, RequestError

ItemId: TypeAlias = str | int
AttributeValues: TypeAlias = Mapping[str, tuple[str, ...]]

MAX_VALUES: Final = 256
"""Values of one attribute of one item."""
MAX_NAME_CHARACTERS: Final = 200
MAX_VECTOR_LENGTH: Final = 1 << 14
MAX_VECTOR_VALUE: Final = 1e9
"""Largest absolute value in a vector: scores of larger ones are not finite."""
MAX_RECORD_BYTES: Final = 32 << 20

_FRAME: Final = struct.Struct("<II")
_HEAD: Final = struct.Struct("<QQBI")
_COUNTS: Final = ("num_events", "num_earlier")


@dataclass(frozen=True, slots=True, eq=False)
class Upsert:
    """A new item, or all facts about an item from now on."""

    id: ItemId
    attributes: AttributeValues = field(default_factory=dict)
    vector_D: NDArray[np.float32] | None = None
    """None for a vector from the attributes."""
    space: str = ""
    """Fingerprint of the embedding space of the vector; empty without a vector."""


@dataclass(frozen=True, slots=True)
class Removal:
    """An item that no answer may contain from now on."""

    id: ItemId


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Interests of users who touched an item that no training has seen. Evidence of one item is added up."""

    id: ItemId
    space: str
    """Fingerprint of the embedding space of the interests."""
    weight: float
    """Of all of the events, where an event has a weight of at most 1."""
    sum_D: NDArray[np.float32]
    """Sum of the weighted interests."""
    num_events: int = 0
    """Recorded events, of any item, since the writer's last evidence. One record of a group has them."""
    num_earlier: int = 0
    """Those of the item's first evidence to this one, where compaction has summed evidence up."""


Change: TypeAlias = Upsert | Removal | Evidence
_KINDS: Final[dict[type, int]] = {Upsert: 1, Removal: 2, Evidence: 3}


class Record(NamedTuple):
    """A durable change."""

    sequence: int
    time_ms: int
    change: Change


def checked_upsert(
    id_: Any, attributes: Mapping[str, Any], vector: Any, *, kind: IdKind, space: str, embedding_dim: int
) -> Upsert:
    """Return an upsert of plain values.

    Args:
        id_: The item's id.
        attributes: One value or several by name; all become their text.
        vector: `embedding_dim` finite numbers; None or empty for a vector from the attributes.
        kind: Kind of the catalogue's ids.
        space: Fingerprint of the embedding space of the live version.
        embedding_dim: Its width.

    Raises:
        RequestError: a value that cannot be stored. The message names it.
    """
    id_ = checked_id(id_, kind)
    if len(attributes) > MAX_NUM_ATTRIBUTES:
        raise RequestError(
            f"item {id_!r:.60}: {len(attributes)} attributes; an item has at most {MAX_NUM_ATTRIBUTES}"
        )
    checked = {name: _values(id_, name, value) for name, value in attributes.items()}
    checked = {name: values for name, values in checked.items() if values}
    if vector is None or not len(vector):
        return Upsert(id_, checked)
    try:
        vector_D = np.array(vector, "<f4")
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"item {id_!r:.60}: its vector holds something else than numbers ({error})"
        ) from None
    if vector_D.shape != (embedding_dim,) or not _is_in_range(vector_D):
        raise RequestError(
            f"item {id_!r:.60}: a vector of shape {vector_D.shape}"
            f"{'' if _is_in_range(vector_D) else ' with values that are not finite, or too large'}; the "
            f"vectors of the live version are {embedding_dim} finite numbers of at most {MAX_VECTOR_VALUE:g}"
        )
    return Upsert(id_, checked, vector_D, space)


def checked_id(id_: Any, kind: IdKind) -> ItemId:
    """Return an id of a catalogue's kind.

    Raises:
        RequestError: the id cannot be this catalogue's.
    """
    if kind == "int":
        if type(id_) is not int or not -(2**63) <= id_ < 2**63:
            raise RequestError(f"item id {id_!r:.60}: this catalogue's ids are 64-bit integers")
        return id_
    if type(id_) is not str:
        raise RequestError(f"item id {id_!r:.60}: this catalogue's ids are strings")
    try:
        num_bytes = len(id_.encode())
    except UnicodeEncodeError:
        raise RequestError(f"item id {id_!r:.60}: not valid text (a lone surrogate)") from None
    if not 1 <= num_bytes <= MAX_ID_BYTES:
        raise RequestError(f"item id {id_!r:.60}: {num_bytes} bytes of UTF-8; an id has 1 to {MAX_ID_BYTES}")
    return id_


def _values(id_: ItemId, name: Any, value: Any) -> tuple[str, ...]:
    """Return the values of an attribute as texts, each once, without empty ones."""
    where = f"item {id_!r:.60}, attribute {name!r:.60}"
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise RequestError(f"{where}: a name has 1 to {MAX_NAME_CHARACTERS} characters")
    values = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    texts: dict[str, None] = {}
    for each in values:
        try:
            text = value_text(each)
        except TypeError as error:
            raise RequestError(f"{where}: {error}; values are {VALUE_TYPES}") from None
        if text is None:
            continue
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise RequestError(f"{where}: {text!r:.60} is not valid text (a lone surrogate)") from None
        if num_bytes > MAX_VALUE_BYTES:
            raise RequestError(f"{where}: a value of {num_bytes} UTF-8 bytes; {MAX_VALUE_BYTES} are allowed")
        texts[text] = None
    if len(texts) > MAX_VALUES:
        raise RequestError(f"{where}: {len(texts)} values; an attribute has at most {MAX_VALUES}")
    return tuple(texts)


def encode_record(record: Record) -> bytes:
    """Return the record as bytes."""
    change = record.change
    facts: dict[str, Any] = {"id": change.id}
    vector = b""
    if isinstance(change, Upsert):
        facts["attributes"] = {name: list(values) for name, values in change.attributes.items()}
        if change.vector_D is not None:
            facts["space"], vector = change.space, change.vector_D.astype("<f4", copy=False).tobytes()
    elif isinstance(change, Evidence):
        facts |= {"space": change.space, "weight": change.weight}
        facts |= {name: count for name in _COUNTS if (count := getattr(change, name))}
        vector = change.sum_D.astype("<f4", copy=False).tobytes()
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
    body = _HEAD.pack(record.sequence, record.time_ms, _KINDS[type(change)], len(text)) + text + vector
    return _FRAME.pack(len(body), _checksum(body)) + body


def decode_records(
    content: bytes | mmap, *, where: str, start: int = 0, first: int = 0
) -> Iterator[tuple[int, Record]]:
    """Yield each record and the place behind it in the file. Each is checked before it is parsed.

    Args:
        content: Whole records.
        where: Name of the file in error messages.
        start: Place of the content in the file.
        first: Place of the first record in the content.

    Raises:
        BundleDamagedError: a record was changed or cut off after it was written.
    """
    place = first
    while place < len(content):
        body_at = place + _FRAME.size
        end = body_at
        if body_at <= len(content):
            num_bytes, checksum = _FRAME.unpack_from(content, place)
            end = body_at + num_bytes
        body = content[body_at:end]
        if (
            body_at > len(content)
            or not _HEAD.size <= end - body_at <= MAX_RECORD_BYTES
            or len(body) != end - body_at
            or _checksum(body) != checksum
        ):
            raise BundleDamagedError(
                f"{where}: the record at byte {start + place} was changed or cut off after it was written"
            )
        try:
            record = _decode_body(body)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
            raise BundleDamagedError(
                f"{where}: the record at byte {start + place} cannot be read ({type(error).__name__})"
            ) from None
        place = end
        yield start + place, record


def _decode_body(body: bytes) -> Record:
    sequence, time_ms, kind, num_json = _HEAD.unpack_from(body)
    text_end = _HEAD.size + num_json
    text = body[_HEAD.size : text_end]
    facts = json.loads(text)
    if b"\\u" in text:  # a lone surrogate, which is no text, can only be escaped
        json.dumps(facts, ensure_ascii=False).encode()
    id_ = facts["id"]
    if type(id_) not in (str, int):
        raise TypeError("an id")
    vector_D = np.frombuffer(body[text_end:], "<f4") if len(body) > text_end else None
    if vector_D is not None and not _is_in_range(vector_D):
        raise ValueError("a vector")
    space = facts.get("space", "")
    if type(space) is not str:
        raise TypeError("a space")
    change: Change
    if kind == _KINDS[Upsert]:
        attributes = {name: tuple(values) for name, values in facts["attributes"].items()}
        if not all(type(value) is str for values in attributes.values() for value in values):
            raise TypeError("a value")
        change = Upsert(id_, attributes, vector_D, space)
    elif kind == _KINDS[Removal]:
        change = Removal(id_)
    elif kind == _KINDS[Evidence] and vector_D is not None:
        weight = float(facts["weight"])
        if not 0 <= weight < math.inf:
            raise ValueError("a weight")
        counts = [facts.get(name, 0) for name in _COUNTS]
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("a number of events")
        change = Evidence(id_, space, weight, vector_D, *counts)
    else:
        raise ValueError(f"kind {kind}")
    return Record(sequence, time_ms, change)


def _is_in_range(vector_D: NDArray[np.float32]) -> bool:
    """Return whether all values are finite and small enough for finite scores."""
    return bool(np.abs(vector_D).max() <= MAX_VECTOR_VALUE)  # False where the maximum is not a number


def _checksum(body: bytes) -> int:
    return zlib.crc32(body, len(body))
