"""gRPC over HTTP/2: header fields, time limits, message prefixes, compression and statuses.

It follows https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Malformed fields get the same
statuses as from gRPC's own library. Knows no connection.
"""

import re
import zlib
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final, TypeAlias
from urllib.parse import quote_from_bytes

from re4.serving.protocol.status_codes import StatusCode
from re4.serving.transports.transport import MESSAGE_TOO_LARGE, ResponseMetadata, StatusError

Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Header fields of a request, in order."""

PREFIX_BYTES: Final = 5
"""A byte for the compression, and four for the length."""
MAX_METADATA_BYTES: Final = 16 << 10
"""Most bytes of all header fields of a call, each with its overhead of 32 bytes."""
_FIELD_OVERHEAD: Final = 32  # RFC 9113, section 6.5.2
_UNIT_S: Final[Mapping[bytes, float]] = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}
_WINDOW_BITS: Final[Mapping[bytes, int]] = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_ENCODINGS: Final = (b"identity", *_WINDOW_BITS)
_HIDDEN: Final = frozenset(
    b":method :scheme :path :authority host te content-type "
    b"grpc-timeout grpc-encoding grpc-accept-encoding".split()
)
"""Fields of the protocol itself, which are no metadata."""
_BINARY: Final = b"-bin"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_READABLE: Final = bytes(range(0x20, 0x7F)).replace(b"%", b"").decode()
"""Characters that the text of a status holds as they are."""

RESPONSE_FIELDS: Final = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
)
_CODES: Final = {code: b"%d" % code.value for code in StatusCode}
OK_TRAILERS: Final = ((b"grpc-status", b"0"),)
_STATUS_FIELDS: Final = RESPONSE_FIELDS[:2]


class NotGrpcError(Exception):
    """A request is no gRPC call: its stream is reset."""


@dataclass(slots=True)
class RequestHead:
    """The header fields of a call."""

    path: bytes
    encoding: bytes | None
    """Of compressed messages; None for none."""
    timeout_s: float | None
    """Until the caller's deadline; None for none."""


def parse_head(fields: Fields, found: Mapping[bytes, bytes] | None = None) -> RequestHead:
    """Return the head of a call.

    Args:
        fields: In order.
        found: The same as a mapping; None to make it.

    Raises:
        NotGrpcError: it is not a POST, or has no `te`.
        StatusError: a field is malformed, or there are too many.
    """
    if found is None:
        found = dict(fields)
    if found.get(b":method") != b"POST" or b"te" not in found:
        raise NotGrpcError
    joined = b"".join(chain.from_iterable(fields))
    num_bytes = len(joined) + _FIELD_OVERHEAD * len(fields)
    if num_bytes > MAX_METADATA_BYTES:
        raise StatusError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"received metadata size exceeds hard limit ({num_bytes} vs. {MAX_METADATA_BYTES})",
        )
    if _BINARY in joined:
        for name, value in fields:
            if name.endswith(_BINARY) and _decoded(value) is None:
                raise _malformed(_text(name), ": illegal base64 encoding")
    encoding = found.get(b"grpc-encoding")
    if encoding is not None and encoding not in _ENCODINGS:
        raise _malformed("grpc-encoding")
    timeout = found.get(b"grpc-timeout")
    return RequestHead(
        path=found[b":path"],
        encoding=encoding if encoding in _WINDOW_BITS else None,
        timeout_s=None if timeout is None else parse_timeout(timeout),
    )


@lru_cache(maxsize=256)
def parse_timeout(text: bytes) -> float:
    """Return the seconds of a `grpc-timeout`.

    Raises:
        StatusError: it is no number with a unit.
    """
    number, unit_s = text[:-1].strip(b" "), _UNIT_S.get(text[-1:])
    if unit_s is None or not number.isdigit():
        raise _malformed("grpc-timeout")
    return float(number) * unit_s


def metadata_of(fields: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata that a caller sent, as gRPC's own library returns it."""
    return tuple(
        (_text(name), (_decoded(value) or b"") if name.endswith(_BINARY) else _text(value))
        for name, value in fields
        if name not in _HIDDEN
    )


def message_end(data: bytes | bytearray, max_bytes: int) -> int | None:
    """Return where the first message of some data ends, or will end; None where its prefix is not complete.

    Raises:
        StatusError: it is longer than `max_bytes`.
    """
    if len(data) < PREFIX_BYTES:
        return None
    num_bytes = int.from_bytes(data[1:PREFIX_BYTES], "big")
    if num_bytes > max_bytes:
        details = MESSAGE_TOO_LARGE.format(num_bytes, max_bytes)
        raise StatusError(StatusCode.RESOURCE_EXHAUSTED, details)
    return PREFIX_BYTES + num_bytes


def unpack(data: bytes | bytearray, encoding: bytes | None, max_bytes: int) -> bytes:
    """Return a message without its prefix, decompressed.

    Args:
        data: The message with its prefix.
        encoding: `RequestHead.encoding` of its call.
        max_bytes: Of the decompressed message. No more is decompressed.

    Raises:
        StatusError: it cannot be decompressed, or is longer.
    """
    packed = bytes(data[PREFIX_BYTES:])
    if not data[0] & 1 or not packed:
        return packed
    if encoding is None:
        raise StatusError(StatusCode.INTERNAL, "Compression bit set but no encoding configured")
    unpacking = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        message = unpacking.decompress(packed, max_bytes + 1)
    except zlib.error:
        raise StatusError(StatusCode.INTERNAL, "Decompression failed due to zlib error") from None
    if len(message) > max_bytes:
        raise StatusError(StatusCode.RESOURCE_EXHAUSTED, "Decompressed message larger than max")
    if not unpacking.eof:
        raise StatusError(StatusCode.INTERNAL, "Decompression failed due to data error")
    if unpacking.unused_data:
        raise StatusError(StatusCode.INTERNAL, "Decompression failed due to not all input consumed")
    return message


def framed(message: bytes) -> bytes:
    """Return a message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def trailers_of(error: StatusError) -> list[tuple[bytes, bytes]]:
    """Return the trailers of a call that fails."""
    return [
        (b"grpc-status", _CODES[error.code]),
        (b"grpc-message", _percent_encoded(error.details)),
        *_encoded(error.metadata),
    ]


@lru_cache(maxsize=64)
def _percent_encoded(text: str) -> bytes:
    """Return the text of a status as a field; under overload many calls get the same."""
    return quote_from_bytes(text.encode(errors="replace"), _READABLE).encode()


def failed_response(error: StatusError) -> list[tuple[bytes, bytes]]:
    """Return the fields of a response that is only a status."""
    return [*_STATUS_FIELDS, *trailers_of(error)]


def _encoded(metadata: ResponseMetadata) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value.encode()) for key, value in metadata]


def _malformed(name: str, why: str = "") -> StatusError:
    return StatusError(StatusCode.INTERNAL, f"Error parsing '{name}' metadata{why}")


def _decoded(value: bytes) -> bytes | None:
    """Return the bytes of a binary field; several may be joined by commas. None where it is malformed."""
    decoded = b""
    for part in value.split(b","):
        if not _BASE64.fullmatch(part):
            return None
        bare = part.rstrip(b"=")
        if len(bare) % 4 == 1:
            return None
        decoded += b64decode(bare + b"=" * (-len(bare) % 4))
    return decoded


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
