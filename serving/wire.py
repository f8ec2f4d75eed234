"""Candidates as bytes on the wire, written column by column: the part of a reply that grows with its length.

Building a message of hundreds of ids only to serialise it costs more than the ids. A serialised message may
be put together of pieces: repeated fields are joined, and so are the fields of a sub-message sent twice.
So these columns stand beside the rest of a reply, and a long reply may have them several times.

`RetrieveReply` and `BatchRetrieveReply` number their columns alike: items 1, scores 2, interest numbers 3.

Legend: M candidates.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.ids import ItemIds
from bundle.string_keys import MAX_ID_BYTES
from protos.v1 import retrieval_pb2
from serving.merging import Merged

_LENGTH_DELIMITED: Final = 2
_MAX_IN_ONE_BYTE: Final = 127


def candidates(merged: Merged, item_ids: ItemIds) -> bytes:
    """The three columns of a list of candidates."""
    scores_M = np.ascontiguousarray(merged.scores_M, "<f4")
    return b"".join(
        (
            _field(1, items(merged.rows_M, item_ids)),
            _field(2, scores_M.tobytes()),
            _field(3, _small_numbers(merged.interest_numbers_M)),
        )
    )


def items(rows_M: NDArray[np.int64], item_ids: ItemIds) -> bytes:
    """The ids of rows as the content of an `ItemIds` message.

    Raises:
        BundleError: a row out of range.
    """
    if item_ids.kind == "string":
        headers = _STRING_HEADERS
        return b"".join([headers[len(text)] + text for text in item_ids.texts(rows_M)])
    return retrieval_pb2.ItemIds(ints=item_ids.ids(rows_M)).SerializeToString()  # type: ignore[arg-type]


def _small_numbers(numbers_M: NDArray[np.int64]) -> bytes:
    """A packed column of numbers from 0 on."""
    if numbers_M.size and numbers_M.max() > _MAX_IN_ONE_BYTE:
        return b"".join(map(_varint, numbers_M.tolist()))
    return numbers_M.astype(np.uint8).tobytes()


def _field(number: int, content: bytes) -> bytes:
    return _header(number, len(content)) + content if content else b""


def _header(number: int, num_bytes: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(num_bytes)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    low = []
    while value > _MAX_IN_ONE_BYTE:
        low.append(value & _MAX_IN_ONE_BYTE | 0x80)
        value >>= 7
    return bytes((*low, value))


_STRING_HEADERS: Final = tuple(_header(1, num_bytes) for num_bytes in range(MAX_ID_BYTES + 1))
"""What stands before an id of so many bytes in `ItemIds.strings`."""
