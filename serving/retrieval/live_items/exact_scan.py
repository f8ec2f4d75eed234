"""The compiled comparison of live items one by one. It finds what products with all vectors would find.

Legend: R slots of live items, B lists to fill, K interests, M places of a list, D embedding.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.common.native_code import address_of, is_native_allowed, load_optional_library
from re4.serving.retrieval.live_items.growing import GrowingArray

_SOURCE: Final = Path(__file__).with_name("exact_scan.c")
_BLOCK: Final = 16


class ItemCodes:
    """Codes of vectors that are added at the end. What `view` returned stays valid."""

    def __init__(self, library: ctypes.CDLL, embedding_dim: int) -> None:
        """Start empty.

        Args:
            library: The compiled code.
            embedding_dim: D.
        """
        self._library = library
        self._dim = embedding_dim
        self._blocks = GrowingArray(np.uint8, 64 * -(-embedding_dim // 4) + 3 * _BLOCK * 4)
        self._length = 0

    def append(self, vectors_RD: NDArray[np.float32]) -> None:
        """Add the codes of finite vectors."""
        vectors_RD = np.ascontiguousarray(vectors_RD, np.float32)
        end = self._length + len(vectors_RD)
        num_new = -(-end // _BLOCK) - len(self._blocks)
        if num_new > 0:
            self._blocks.append(np.zeros((num_new, self._blocks.view().shape[1]), np.uint8))
        self._library.encode_items(
            address_of(self._blocks.view()),
            self._length,
            len(vectors_RD),
            address_of(vectors_RD),
            self._dim,
        )
        self._length = end

    def renumber(self, vectors_RD: NDArray[np.float32]) -> "ItemCodes":
        """Return the codes of other vectors."""
        codes = ItemCodes(self._library, self._dim)
        codes.append(vectors_RD)
        return codes

    def view(self) -> "ExactScan":
        """Return a scan of the present items."""
        return ExactScan(self._library, self._blocks.view())


class ExactScan:
    """Scans of the codes of some items. Immutable and thread-safe."""

    def __init__(self, library: ctypes.CDLL, blocks: NDArray[np.uint8]) -> None:
        self._library = library
        self._blocks = blocks

    def merge_into(
        self,
        rows_BM: NDArray[np.int64],
        scores_BM: NDArray[np.float32],
        numbers_BM: NDArray[np.int64] | None,
        interests_BKD: NDArray[np.float32],
        vectors_RD: NDArray[np.float32],
        *,
        start: int,
        is_hidden_R: NDArray[np.bool_] | None,
        first_row: int,
    ) -> None:
        """Put the items that score more than the last one of a list into it, behind equal scores.

        Args:
            rows_BM: Rows of each list, which change.
            scores_BM: Their scores, best first, which change.
            numbers_BM: The interest of each, which changes; None for lists of one interest.
            interests_BKD: Finite. An item's score is the best over the interests of the list.
            vectors_RD: The vectors of all slots.
            start: Slots before this one are not compared.
            is_hidden_R: Slots that are left out; None for none.
            first_row: Row of slot 0.
        """
        num_lists, num_interests, dim = interests_BKD.shape
        arrays = (rows_BM, scores_BM, vectors_RD, interests_BKD)
        assert all(array.flags.c_contiguous for array in arrays)
        failed = self._library.merge_items(
            address_of(self._blocks),
            address_of(vectors_RD),
            None if is_hidden_R is None else address_of(is_hidden_R),
            start,
            len(vectors_RD),
            dim,
            first_row,
            num_lists,
            num_interests,
            address_of(interests_BKD),
            rows_BM.shape[1],
            address_of(rows_BM),
            address_of(scores_BM),
            None if numbers_BM is None else address_of(numbers_BM),
        )
        if failed:
            raise MemoryError("no memory to compare live items")


def open_item_codes(embedding_dim: int) -> ItemCodes | None:
    """Return the codes of no items; None where there is no compiled code here."""
    library = _library() if is_native_allowed() else None
    return None if library is None else ItemCodes(library, embedding_dim)


@cache
def _library() -> ctypes.CDLL | None:
    library = load_optional_library(_SOURCE, "live items are compared more slowly")
    if library is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.encode_items.argtypes = [address, number, number, address, number]
    library.encode_items.restype = None
    library.merge_items.argtypes = [*[address] * 3, *[number] * 6, address, number, *[address] * 3]
    return library
