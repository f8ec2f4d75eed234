"""Titles of a version's items, memory-mapped: for people who look at answers. Searches do not use them.

    titles.utf8           the titles, one after another in row order
    titles.offsets.npy    the start of each title, and the end of the last one    [N + 1]

An item without a title has an empty one. Older versions lack the files, and so do those of catalogues without
titles.

Legend: N items.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import map_text, open_array
from re4.bundle.layout import TITLES, TITLES_OFFSETS
from re4.common.errors import BundleDamagedError

MAX_TITLE_BYTES: Final = 400
"""Longer titles are cut."""
TITLE_COLUMN: Final = "title_column"
"""In a manifest's lineage: the catalogue's column with the titles. Empty for none."""
USUAL_COLUMNS: Final = ("title", "name")
"""Columns with titles, unless the version names another one."""
CHUNK_TITLES: Final = 1024
"""Titles that a search reads at once: a millisecond at most."""


def write_titles(folder: Path, titles: Iterable[str | None]) -> None:
    """Write the titles of a version's items into its folder, in row order; nothing where all are empty."""
    lengths = [0]
    with (folder / TITLES).open("wb") as file:
        for title in titles:
            lengths.append(file.write(_encode(title)))
    offsets_N1 = np.cumsum(lengths, dtype=np.uint64)
    if not offsets_N1[-1]:
        (folder / TITLES).unlink()
        return
    np.save(folder / TITLES_OFFSETS, offsets_N1.astype("<u8"))


class Titles:
    """The titles of one version. Threads can share it."""

    def __init__(self, folder: Path, num_items: int) -> None:
        """Map the files of a verified version; raise BundleDamagedError where they do not fit it."""
        self._offsets_N1: NDArray[np.uint64] = open_array(folder / TITLES_OFFSETS, "<u8", (num_items + 1,))
        self._text = map_text(folder / TITLES, int(self._offsets_N1[-1]))
        self._num_items = num_items
        self._where = folder / TITLES

    @classmethod
    def open(cls, folder: Path, num_items: int) -> "Titles | None":
        """Return the titles of a verified version; None where it has none."""
        return cls(folder, num_items) if (folder / TITLES).exists() else None

    def title(self, row: int) -> str:
        """Return the title of an item, empty where it has none."""
        return self._text[int(self._offsets_N1[row]) : int(self._offsets_N1[row + 1])].decode()

    def chunks(self) -> Iterator[tuple[int, str]]:
        """Yield the titles as joined texts: the first row of each chunk, and its text."""
        for start in range(0, self._num_items, CHUNK_TITLES):
            stop = min(start + CHUNK_TITLES, self._num_items)
            yield start, self._text[int(self._offsets_N1[start]) : int(self._offsets_N1[stop])].decode()

    def num_in_chunk(self, start: int) -> int:
        """Return the number of titles of the chunk that begins at a row."""
        return min(CHUNK_TITLES, self._num_items - start)

    def check(self) -> None:
        """Check that the texts follow each other and are UTF-8; raise BundleDamagedError where not."""
        starts_N, ends_N = self._offsets_N1[:-1], self._offsets_N1[1:]
        if self._offsets_N1[0] != 0 or (starts_N > ends_N).any():
            raise BundleDamagedError(f"{self._where}: the offsets do not ascend. Publish the version again")
        starts_N = starts_N[starts_N < ends_N]
        try:
            for _ in self.chunks():
                pass
            is_split = (np.frombuffer(self._text, np.uint8)[starts_N] & 0xC0 == 0x80).any()
        except UnicodeDecodeError:
            is_split = True
        if is_split:
            raise BundleDamagedError(f"{self._where}: not all titles are UTF-8. Publish the version again")


def title_among(values: Mapping[str, Sequence[str]], lineage: Mapping[str, object]) -> str:
    """Return the title among the values of a live item, as a version would have it; empty for none.

    Args:
        values: Of the item, by the catalogue's column.
        lineage: Of the version's manifest.
    """
    wanted = lineage.get(TITLE_COLUMN)
    columns = (str(wanted),) if wanted is not None else USUAL_COLUMNS
    return _encode(next((values[name][0] for name in columns if values.get(name)), "")).decode()


def _encode(title: str | None) -> bytes:
    encoded = " ".join((title or "").split()).encode(errors="replace")[:MAX_TITLE_BYTES]
    return encoded.decode(errors="ignore").encode()  # a character that was cut in two is dropped
