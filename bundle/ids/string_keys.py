"""64-bit keys of string ids, computed for many ids at once.

The ids are laid out as a matrix of 64-bit words. Each word is multiplied by an odd number of its position
and mixed (the finalizer of MurmurHash3, by Austin Appleby, public domain); the words are summed, and sum and
length are mixed again. A word of zeros adds nothing, so the key does not depend on the lengths of the other
ids of a call. The keys are stored in bundles: another hash would be another format.

Different ids can have equal keys, so a look-up compares the ids as well.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_ID_BYTES: Final = 1024
"""Longest string id, in UTF-8 bytes."""

WORD_BYTES: Final = 8
_GOLDEN: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd
_FIRST_FACTOR: Final = 0xFF51AFD7ED558CCD
_SECOND_FACTOR: Final = 0xC4CEB9FE1A85EC53


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words ^= words >> np.uint64(33)
    words *= np.uint64(_FIRST_FACTOR)
    words ^= words >> np.uint64(33)
    words *= np.uint64(_SECOND_FACTOR)
    words ^= words >> np.uint64(33)
    return words


POSITIONS: Final = _mix(np.arange(1, MAX_ID_BYTES // WORD_BYTES + 1, dtype=np.uint64)) | np.uint64(1)
"""An odd factor for each word of an id."""


def words_of(ids: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Lay ids out as a matrix of 64-bit words, padded with zeros.

    Args:
        ids: At least one UTF-8 id; none longer than `MAX_ID_BYTES`.

    Returns:
        The words [number of ids, words of the longest], little-endian, and the lengths in bytes.
    """
    lengths = np.fromiter(map(len, ids), np.uint64, len(ids))
    num_words = max(1, -(-int(lengths.max()) // WORD_BYTES))
    padded = np.array(ids, dtype=f"S{num_words * WORD_BYTES}")
    words = padded.view("<u8").astype(np.uint64, copy=False).reshape(len(ids), num_words)
    return words, lengths


def keys_of_words(words: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the keys of ids that `words_of` laid out: uint64 [number of ids]."""
    sums = _mix(words * POSITIONS[: words.shape[1]]).sum(axis=1, dtype=np.uint64)
    return _mix(sums + lengths * np.uint64(_GOLDEN))


_ALL_BITS: Final = (1 << 64) - 1
_POSITION_NUMBERS: Final[list[int]] = POSITIONS.tolist()


def key_of(id_: bytes) -> int:
    """Return the key of one UTF-8 id of at most `MAX_ID_BYTES`, equal to that of `keys_of_words`."""
    total = len(id_) * _GOLDEN
    for start in range(0, len(id_), WORD_BYTES):
        word = int.from_bytes(id_[start : start + WORD_BYTES], "little")
        total += _mix_one(word * _POSITION_NUMBERS[start // WORD_BYTES] & _ALL_BITS)
    return _mix_one(total & _ALL_BITS)


def _mix_one(word: int) -> int:
    """Mix one word as `_mix` does."""
    word ^= word >> 33
    word = word * _FIRST_FACTOR & _ALL_BITS
    word ^= word >> 33
    word = word * _SECOND_FACTOR & _ALL_BITS
    return word ^ word >> 33
