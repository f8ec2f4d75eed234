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
        return _strings(*item_ids.joined(rows_M))
    return retrieval_pb2.ItemIds(ints=item_ids.ids(rows_M)).SerializeToString()  # type: ignore[arg-type]


def _strings(text: NDArray[np.uint8], lengths_M: NDArray[np.int64]) -> bytes:
    """Texts that lie without a gap, each with its header before it."""
    num_texts = len(lengths_M)
    if num_texts and lengths_M.max() > _MAX_IN_ONE_BYTE:
        ends = np.cumsum(lengths_M).tolist()
        whole = text.tobytes()
        return b"".join(
            _header(1, end - start) + whole[start:end] for start, end in zip([0, *ends], ends, strict=False)
        )
    # A header is two bytes: field and kind, and the length.
    numbers_M = np.arange(num_texts)
    content = np.empty(len(text) + 2 * num_texts, np.uint8)
    content[np.arange(len(text)) + np.repeat(2 * numbers_M + 2, lengths_M)] = text
    heads_M = np.cumsum(lengths_M) - lengths_M + 2 * numbers_M
    content[heads_M] = 1 << 3 | _LENGTH_DELIMITED
    content[heads_M + 1] = lengths_M
    return content.tobytes()


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
