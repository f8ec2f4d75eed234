"""The encoding of candidates as protobuf bytes: columns of ids, scores and interest numbers.

To build a message object of hundreds of ids costs more time than to look up the ids. So the columns
are written as bytes directly, and the rest of a reply is serialised beside them. A serialised
message may be a concatenation of pieces: repeated fields are joined, and so are the fields of a
sub-message that occurs twice. A reply to many users has the columns once for each user.

`RetrieveReply` and `BatchRetrieveReply` have equal field numbers: items 1, scores 2, interest
numbers 3.

Legend: M candidates.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.common.native_code import address_of, is_native_allowed, load_optional_library
from re4.protos.v1 import retrieval_pb2
from re4.serving.retrieval.merging import MergedList

_SOURCE: Final = Path(__file__).with_name("candidate_columns.c")
_LENGTH_DELIMITED: Final = 2
_MAX_IN_ONE_BYTE: Final = 127
_ROOM_BYTES: Final = 64
"""For each candidate and for each list, at first: enough for ids of up to 32 bytes."""


def encode_candidates(lists: Sequence[MergedList], item_ids: ItemIds) -> list[bytes]:
    """Return the three columns of each list of candidates.

    Args:
        lists: At least one. They are encoded together because the fixed cost exceeds that of a list.
        item_ids: Of the version that found them.

    Raises:
        BundleError: a row out of range.
    """
    compiled = open_compiled() if item_ids.kind == "string" else None
    if compiled is not None:
        return _compiled(compiled, lists, item_ids)
    ends = list(accumulate(len(each.rows_M) for each in lists))
    spans = list(zip([0, *ends], ends, strict=False))
    scores = np.ascontiguousarray(np.concatenate([each.scores_M for each in lists]), "<f4").tobytes()
    numbers_M = np.concatenate([each.interest_numbers_M for each in lists])
    if numbers_M.size and numbers_M.max() > _MAX_IN_ONE_BYTE:
        numbers = [b"".join(map(_varint, numbers_M[start:end].tolist())) for start, end in spans]
    else:
        in_bytes = numbers_M.astype(np.uint8).tobytes()
        numbers = [in_bytes[start:end] for start, end in spans]
    ids = _items([each.rows_M for each in lists], spans, item_ids)
    return [
        _field(1, own_ids) + _field(2, scores[4 * start : 4 * end]) + _field(3, own_numbers)
        for own_ids, own_numbers, (start, end) in zip(ids, numbers, spans, strict=True)
    ]


@cache
def open_compiled() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is none. Compiles it where that was never done."""
    if not is_native_allowed() or sys.byteorder != "little":
        return None
    library = load_optional_library(_SOURCE, "candidates are encoded more slowly")
    if library is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.encode_columns.argtypes = [
        *[address] * 3, number, *[address] * 3, number, address, number,
    ]  # fmt: skip
    library.encode_columns.restype = number
    return library


def _compiled(library: ctypes.CDLL, lists: Sequence[MergedList], item_ids: ItemIds) -> list[bytes]:
    if len(lists) == 1:
        (only,) = lists
        rows_M, scores_M, numbers_M = only.rows_M, only.scores_M, only.interest_numbers_M
    else:
        rows_M = np.concatenate([each.rows_M for each in lists])
        scores_M = np.concatenate([each.scores_M for each in lists])
        numbers_M = np.concatenate([each.interest_numbers_M for each in lists])
    text, offsets, rows_M = item_ids.text(np.ascontiguousarray(rows_M, np.int64))
    rows_M, scores_M = np.ascontiguousarray(rows_M), np.ascontiguousarray(scores_M, np.float32)
    numbers_M = np.ascontiguousarray(numbers_M, np.int64)
    ends = (ctypes.c_int64 * len(lists))(*accumulate(len(each.rows_M) for each in lists))
    room = _ROOM_BYTES * (len(rows_M) + len(lists))
    while True:
        out = np.empty(room, np.uint8)
        more = library.encode_columns(
            address_of(text),
            address_of(offsets),
            address_of(rows_M),
            len(offsets) - 1,
            address_of(scores_M),
            address_of(numbers_M),
            ends,
            len(lists),
            address_of(out),
            room,
        )
        if not more:
            break
        if more < 0:
            item_ids.padded(rows_M)  # it raises the error that names the rows
            raise IndexError(f"a row of {rows_M} is out of range")
        room = more
    whole = out[: ends[-1]].tobytes()
    return [whole] if len(lists) == 1 else [whole[a:b] for a, b in pairwise([0, *ends])]


def _items(
    rows_M: Sequence[NDArray[np.int64]], spans: Sequence[tuple[int, int]], item_ids: ItemIds
) -> list[bytes]:
    """Return the ids of each list as the content of an `ItemIds` message."""
    if item_ids.kind == "int":
        return [retrieval_pb2.ItemIds(ints=item_ids.ids(rows)).SerializeToString() for rows in rows_M]  # type: ignore[arg-type]
    texts, lengths_M = item_ids.padded(np.concatenate(rows_M))
    if len(lengths_M) and lengths_M.max() > _MAX_IN_ONE_BYTE:
        whole, width = texts.tobytes(), texts.shape[1]
        each = [
            _header(1, length) + whole[place * width : place * width + length]
            for place, length in enumerate(lengths_M.tolist())
        ]
        return [b"".join(each[start:end]) for start, end in spans]
    # Each header is two bytes: field number with wire type, and length.
    content = np.empty((len(texts), 2 + texts.shape[1]), np.uint8)
    content[:, 0] = 1 << 3 | _LENGTH_DELIMITED
    content[:, 1] = lengths_M
    content[:, 2:] = texts
    whole = content[np.arange(content.shape[1]) < 2 + lengths_M[:, None]].tobytes()
    ends = [0, *np.cumsum(lengths_M + 2).tolist()]
    return [whole[ends[start] : ends[end]] for start, end in spans]


def _field(number: int, content: bytes) -> bytes:
    return _header(number, len(content)) + content if content else b""


def _header(number: int, num_bytes: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(num_bytes)


def _varint(value: int) -> bytes:
    """Encode seven bits a byte, lowest first; the top bit is set where more bytes follow."""
    low = []
    while value > _MAX_IN_ONE_BYTE:
        low.append(value & _MAX_IN_ONE_BYTE | 0x80)
        value >>= 7
    return bytes((*low, value))
