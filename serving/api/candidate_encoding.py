"""The encoding of candidates as protobuf bytes: columns of ids, scores and interest numbers.

To build a message object of hundreds of ids costs more time than to look up the ids. So the columns
are written as bytes directly, and the rest of a reply is serialised beside them. A serialised
message may be a concatenation of pieces: repeated fields are joined, and so are the fields of a
sub-message that occurs twice. A reply to many users has the columns once for each user.

`RetrieveReply` and `BatchRetrieveReply` have equal field numbers: items 1, scores 2, interest
numbers 3.

Legend: M candidates.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.protos.v1 import retrieval_pb2
from re4.serving.retrieval.merging import MergedList

_LENGTH_DELIMITED: Final = 2
_MAX_IN_ONE_BYTE: Final = 127


def encode_candidates(lists: Sequence[MergedList], item_ids: ItemIds) -> list[bytes]:
    """Return the three columns of each list of candidates.

    Args:
        lists: At least one. They are encoded together because the fixed cost exceeds that of a list.
        item_ids: Of the version that found them.

    Raises:
        BundleError: a row out of range.
    """
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
