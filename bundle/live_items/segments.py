"""Segments of live items: files of records that only grow, in a folder beside the versions.

A segment begins with eight fixed bytes. How much of it counts stands in the list `LIVE` (`live_list.py`).
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from re4.bundle.layout import LIVE_FOLDER
from re4.bundle.live_items.live_list import Segment
from re4.bundle.live_items.records import Record, decode_records
from re4.bundle.safe_files import open_folder, open_regular
from re4.common.errors import BundleDamagedError

MAGIC: Final = b"RE4LIVE1"


def read_segment(bundles: Path, segment: Segment, *, start: int = 0) -> Iterator[tuple[int, Record]]:
    """Yield the records of a segment that count, and the place behind each.

    Args:
        bundles: The bundle directory.
        segment: As `LIVE` lists it.
        start: Place of the first record to read; 0 for all.

    Raises:
        BundleDamagedError: the segment is missing, shorter than listed, or was changed.
        BundleUnavailableError: it cannot be read at this moment.
    """
    where = f"{bundles / LIVE_FOLDER / segment.name}"
    with (
        open_folder(bundles / LIVE_FOLDER) as folder,
        open_regular(segment.name, folder=folder, where=where) as descriptor,
    ):
        size = os.fstat(descriptor).st_size
        if size < segment.num_bytes or segment.num_bytes < len(MAGIC):
            raise BundleDamagedError(f"{where}: {size} bytes, {segment.num_bytes} are listed: cut off")
        if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            raise BundleDamagedError(f"{where}: does not begin as a segment of live items")
        start = max(start, len(MAGIC))
        if start < segment.num_bytes:
            yield from _read(descriptor, segment.num_bytes, start, where)


_MAPPED_FROM: Final = 1 << 20


def _read(descriptor: int, end: int, start: int, where: str) -> Iterator[tuple[int, Record]]:
    if end - start < _MAPPED_FROM:
        content = os.pread(descriptor, end - start, start)
        if len(content) < end - start:
            raise BundleDamagedError(f"{where}: {start + len(content)} bytes, {end} are listed: cut off")
        yield from decode_records(content, where=where, start=start)
        return
    with mmap.mmap(descriptor, end, access=mmap.ACCESS_READ) as mapped:
        yield from decode_records(mapped, where=where, first=start)
