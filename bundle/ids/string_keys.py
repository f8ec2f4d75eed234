"""A 64-bit key for every string id, computed for many ids at once.

The ids are laid out as a matrix of 64-bit words; each word is multiplied by an odd number of its
position and mixed (the finalizer of MurmurHash3, by Austin Appleby, public domain), the words are summed, and
sum and length are mixed once more. A word of zeros adds nothing, so that an id's key does not depend on how
long the other ids of the call are. The keys are stored in bundles: changing this changes the format.

Equal keys for different ids are possible: whoever uses keys compares the ids themselves.
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


_POSITIONS: Final = _mix(np.arange(1, MAX_ID_BYTES // WORD_BYTES + 1, dtype=np.uint64)) | np.uint64(1)


def words_of(ids: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Ids as a matrix of 64-bit words, zeros behind each.

    Args:
        ids: At least one UTF-8 id; none longer than `MAX_ID_BYTES`.

    Returns:
        The words [number of ids, words of the longest], little end first, and the ids' lengths in bytes.
    """
    lengths = np.fromiter(map(len, ids), np.uint64, len(ids))
    num_words = max(1, -(-int(lengths.max()) // WORD_BYTES))
    padded = np.array(ids, dtype=f"S{num_words * WORD_BYTES}")
    words = padded.view("<u8").astype(np.uint64, copy=False).reshape(len(ids), num_words)
    return words, lengths


def keys_of_words(words: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys of ids that were laid out by `words_of`: uint64 [number of ids]."""
    sums = _mix(words * _POSITIONS[: words.shape[1]]).sum(axis=1, dtype=np.uint64)
    return _mix(sums + lengths * np.uint64(_GOLDEN))


_ALL_BITS: Final = (1 << 64) - 1
_POSITION_NUMBERS: Final[list[int]] = _POSITIONS.tolist()


def key_of(id_: bytes) -> int:
    """The key of one UTF-8 id of at most `MAX_ID_BYTES`, as `keys_of_words` gives it."""
    total = len(id_) * _GOLDEN
    for start in range(0, len(id_), WORD_BYTES):
        word = int.from_bytes(id_[start : start + WORD_BYTES], "little")
        total += _mix_one(word * _POSITION_NUMBERS[start // WORD_BYTES] & _ALL_BITS)
    return _mix_one(total & _ALL_BITS)


def _mix_one(word: int) -> int:
    """As `_mix` does with many."""
    word ^= word >> 33
    word = word * _FIRST_FACTOR & _ALL_BITS
    word ^= word >> 33
    word = word * _SECOND_FACTOR & _ALL_BITS
    return word ^ word >> 33
