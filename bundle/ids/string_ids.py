"""String ids: row -> id and id -> row over memory-mapped files, 20 bytes per item beside the text.

The files hold the UTF-8 text of all ids in row order, its N + 1 offsets, and the 64-bit keys of the ids in
ascending order with the row of each. A look-up finds the key by bisection and then compares the text, which
detects unknown ids and colliding keys. There are no Python objects per id.
"""

import ctypes
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import check_texts, map_text, open_array
from re4.bundle.ids.string_keys import MAX_ID_BYTES, POSITIONS, WORD_BYTES, key_of, keys_of_words, words_of
from re4.bundle.layout import ID_KEYS, ID_OFFSETS, ID_ROWS, ID_TEXT
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.native_code import address_of, is_native_allowed, load_optional_library

_SOURCE: Final = Path(__file__).with_name("string_rows.c")

_CHUNK_IDS: Final = 16_384

_MAX_ONE_BY_ONE: Final = 8
"""Up to this number, ids are found faster one by one than by array operations."""


def write_string_ids(folder: Path, ids: Sequence[str]) -> None:
    """Write the files for N string ids in row order.

    Raises:
        BundleError: an id is empty, too long, not a string, not valid text, or a duplicate.
    """
    lengths_N = np.empty(len(ids), np.uint16)  # of at most MAX_ID_BYTES
    keys_N = np.empty(len(ids), "<u8")
    with (folder / ID_TEXT).open("wb") as file:
        for start in range(0, len(ids), _CHUNK_IDS):
            encoded = [_encode(id_, start + i) for i, id_ in enumerate(ids[start : start + _CHUNK_IDS])]
            span = slice(start, start + len(encoded))
            lengths_N[span] = np.fromiter(map(len, encoded), np.uint16, len(encoded))
            keys_N[span] = keys_of_words(*words_of(encoded))
            file.write(b"".join(encoded))
    offsets = np.zeros(len(ids) + 1, "<u8")
    np.cumsum(lengths_N, out=offsets[1:], dtype=np.uint64)
    np.save(folder / ID_OFFSETS, offsets)
    del offsets, lengths_N
    rows_N = np.argsort(keys_N, kind="stable").astype("<i4")
    keys_N.sort()  # in place: a sorted copy would set the peak of memory
    _refuse_duplicates(ids, keys_N, rows_N)
    np.save(folder / ID_KEYS, keys_N)
    np.save(folder / ID_ROWS, rows_N)


class StringIds:
    """Row -> id and id -> row over the files of `write_string_ids`."""

    def __init__(self, folder: Path, num_items: int) -> None:
        """Map the files; raise BundleDamagedError where an array has another type or length."""
        self._folder = folder
        self._keys = open_array(folder / ID_KEYS, "<u8", (num_items,))
        self._rows = open_array(folder / ID_ROWS, "<i4", (num_items,))
        self.offsets = open_array(folder / ID_OFFSETS, "<u8", (num_items + 1,))
        """Where the id of each row begins in `text`, and the end of the last one."""
        self.text = np.frombuffer(map_text(folder / ID_TEXT, int(self.offsets[-1])), np.uint8)
        self._key_numbers = self._keys.data

    def check(self) -> None:
        """Read all files and check that every row has an id and every key a row.

        Raises:
            BundleDamagedError: the files contradict each other.
        """
        check_texts(self.offsets, self.text, max_bytes=MAX_ID_BYTES, where=self._folder / ID_TEXT)
        is_there_N = np.zeros(len(self._rows), np.bool_)
        if self._rows.min() >= 0 and self._rows.max() < len(self._rows):
            is_there_N[self._rows] = True
        if not is_there_N.all() or (self._keys[1:] < self._keys[:-1]).any():
            raise BundleDamagedError(f"{self._folder / ID_ROWS}: not one row for each key, keys ascending")

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids, -1 where unknown: int64 [number of ids]."""
        if not ids:
            return np.empty(0, np.int64)
        encoded = _encoded(ids)
        if len(encoded) <= _MAX_ONE_BY_ONE:
            return np.array([self._row(id_) for id_ in encoded], np.int64)
        words, lengths = words_of(encoded)
        keys = keys_of_words(words, lengths)
        places = self._keys.searchsorted(keys)
        rows = self._rows.take(places, mode="clip").astype(np.int64)
        # Where the text differs, the id is unknown or another id has the same key.
        others = np.flatnonzero(~self._are(rows, words, lengths))
        if others.size:
            rows[others] = -1
            others = others[self._keys.take(places[others], mode="clip") == keys[others]]
        for other in others.tolist():
            rows[other] = self._row_of_key(int(keys[other]), int(places[other]) + 1, encoded[other])
        return rows

    def rows_of_texts(self, texts: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of ids that lie one after another as UTF-8, -1 where unknown.

        Args:
            texts: All ids.
            ends: Where each id ends.
        """
        library = _open_compiled()
        if library is None:
            starts = [0, *ends.tolist()]
            return self.rows([texts[a:b].decode() for a, b in pairwise(starts)])
        rows = np.empty(len(ends), np.int64)
        library.rows_of_texts(
            texts,
            address_of(ends),
            len(ends),
            address_of(POSITIONS),
            MAX_ID_BYTES,
            address_of(self._keys),
            address_of(self._rows),
            len(self._keys),
            address_of(self.text),
            address_of(self.offsets),
            address_of(rows),
        )
        return rows

    def _are(
        self, rows: NDArray[np.int64], words: NDArray[np.uint64], lengths: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Return whether the ids of rows equal those laid out by `words_of`."""
        starts = self.offsets[rows]
        are = np.asarray(self.offsets[rows + 1] - starts == lengths, np.bool_)
        alike = slice(None) if are.all() else np.flatnonzero(are)
        texts = self._gather(starts[alike].astype(np.int64), words.shape[1] * WORD_BYTES)
        texts[np.arange(texts.shape[1]) >= lengths[alike, None]] = 0
        are[alike] = (texts.view("<u8") == words[alike]).all(axis=1)
        return are

    def ids(self, rows: NDArray[np.integer]) -> list[str]:
        """Return the ids of rows, which must be valid."""
        return [text.decode() for text in self.texts(rows)]

    def _row(self, wanted: bytes) -> int:
        """Return the row of an id; -1 where it is unknown."""
        key = key_of(wanted)
        return self._row_of_key(key, bisect_left(self._key_numbers, key), wanted)

    def _row_of_key(self, key: int, place: int, wanted: bytes) -> int:
        """Return the row of an id whose key begins at `place`; -1 where it is unknown."""
        while place < len(self._keys) and int(self._keys[place]) == key:
            (text,) = self.texts(self._rows[place : place + 1])
            if text == wanted:
                return int(self._rows[place])
            place += 1
        return -1

    def texts(self, rows: NDArray[np.integer]) -> list[bytes]:
        """Return the ids of rows, which must be valid, as UTF-8."""
        padded, lengths_R = self.padded(rows)
        width, text = padded.shape[1], padded.tobytes()
        return [
            text[place * width : place * width + length] for place, length in enumerate(lengths_R.tolist())
        ]

    def padded(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the ids of rows, which must be valid, as a matrix of UTF-8 with any padding, and lengths.

        All ids are gathered in one operation: ids of random rows are scattered in memory, and the CPU then
        waits for memory once instead of once per id.
        """
        starts_R = self.offsets[rows].astype(np.int64)
        lengths_R = self.offsets[rows + 1].astype(np.int64) - starts_R
        return self._gather(starts_R, int(lengths_R.max(initial=1))), lengths_R

    def _gather(self, starts: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
        """Return `width` bytes of text from each start; arbitrary bytes beyond the end of the text."""
        last = len(self.text) - width
        texts = np.zeros((len(starts), width), np.uint8)
        if last >= 0:
            # A view of one window at each position: NumPy copies whole windows, not single bytes.
            windows: NDArray[np.void] = np.ndarray((last + 1,), f"V{width}", self.text, strides=(1,))
            texts = windows[np.minimum(starts, last)].view(np.uint8).reshape(len(starts), width)
        for place in np.flatnonzero(starts > last).tolist():
            tail = self.text[starts[place] :]
            texts[place, : len(tail)] = tail[:width]
        return texts


@cache
def _open_compiled() -> ctypes.CDLL | None:
    """Return the compiled look-up; None where there is none. Compiles it where that was never done."""
    if not is_native_allowed() or sys.byteorder != "little":
        return None
    library = load_optional_library(_SOURCE, "ids are looked up more slowly")
    if library is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.rows_of_texts.argtypes = [
        *(ctypes.c_char_p, address, number, address, number),
        *(address, address, number, address, address, address),
    ]
    library.rows_of_texts.restype = None
    return library


def _encode(id_: str, row: int) -> bytes:
    if not isinstance(id_, str):
        raise BundleError(f"item id in row {row}: {id_!r} is not a string, but the ids before it are")
    try:
        encoded = id_.encode()
    except UnicodeEncodeError:
        raise BundleError(f"item id in row {row}: {id_!r} is not valid text (a lone surrogate)") from None
    if not 0 < len(encoded) <= MAX_ID_BYTES:
        raise BundleError(
            f"item id in row {row}: {len(encoded)} UTF-8 bytes, 1 to {MAX_ID_BYTES} are allowed: {id_[:60]!r}"
        )
    return encoded


def _encoded(ids: Sequence[str]) -> list[bytes]:
    """Return the ids as UTF-8; empty, which no item has, for those that no catalogue can contain."""
    try:
        encoded = [id_.encode() for id_ in ids]
    except UnicodeEncodeError:
        encoded = [id_.encode() if _is_text(id_) else b"" for id_ in ids]
    if max(map(len, encoded)) > MAX_ID_BYTES:
        encoded = [text if len(text) <= MAX_ID_BYTES else b"" for text in encoded]
    return encoded


def _is_text(id_: str) -> bool:
    """Return whether an id has no lone surrogate."""
    try:
        id_.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_duplicates(ids: Sequence[str], keys_N: NDArray[np.uint64], rows_N: NDArray[np.int32]) -> None:
    """Compare the ids with equal keys; both arrays are in the order of the keys."""
    seen: dict[str, int] = {}
    previous = -2  # no position: nothing precedes the first one
    for place in np.flatnonzero(keys_N[1:] == keys_N[:-1]).tolist():
        if place != previous + 1:
            seen = {ids[int(rows_N[place])]: int(rows_N[place])}
        previous = place
        row = int(rows_N[place + 1])
        if ids[row] in seen:
            raise BundleError(
                f"item id {ids[row]!r}: in row {seen[ids[row]]} and in row {row}; every id must be there once"
            )
        seen[ids[row]] = row
