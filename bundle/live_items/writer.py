"""Writing of live items: durable when `append_changes` returns, whole or not at all.

The records go behind the last segment and to the disk; then `LIVE` is replaced, which is the commit. Records
of a writer that died before its commit lie behind the listed length, and the next writer cuts them off.
"""

import errno
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Final

from re4.bundle.layout import LIVE, LIVE_FOLDER
from re4.bundle.live_items.live_list import Segment, read_live_list, write_live_list
from re4.bundle.live_items.records import Change, Record, encode_record
from re4.bundle.live_items.segments import MAGIC
from re4.bundle.publishing.directory_lock import DirectoryLock, live_items_lock
from re4.bundle.safe_files import unavailable
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.files import sync

MAX_SEGMENT_BYTES: Final = 64 << 20
"""A longer segment is followed by another one."""
MAX_BYTES: Final = 4 << 30
"""Of all segments: more changes than this should be taken in by a rebuild."""


_log = logging.getLogger(__name__)


def append_changes(bundles: Path, changes: Sequence[Change], *, patience_s: float = 60.0) -> int:
    """Make changes durable, all of them or none.

    Args:
        bundles: The bundle directory.
        changes: In their order; of two changes of one item the later one holds.
        patience_s: How long to wait for another writer.

    Returns:
        The sequence number of the last of them.

    Raises:
        BundleBusyError: another writer has been at work for so long.
        BundleError: the directory cannot be written, is full, or has damaged live items. No change counts.
    """
    try:
        with live_items_lock(bundles, patience_s=patience_s) as lock:
            return _append(bundles, changes, lock)
    except OSError as error:
        why = error.strerror or str(error)
        raise unavailable(error, bundles) or BundleError(
            f"{bundles / LIVE}: the changes of {len(changes):,} items cannot be written ({why}); none of "
            "them counts"
        ) from error


def _append(bundles: Path, changes: Sequence[Change], lock: DirectoryLock) -> int:
    before = read_live_list(bundles)
    if not changes:
        return before.sequence
    now_ms = int(time() * 1000)
    content = b"".join(
        encode_record(Record(before.sequence + number, now_ms, change))
        for number, change in enumerate(changes, 1)
    )
    if before.num_bytes + len(content) > MAX_BYTES:
        raise BundleError(
            f"{bundles / LIVE_FOLDER}: {before.num_bytes:,} bytes, at most {MAX_BYTES:,} are allowed: let a "
            "rebuild take the live items in"
        )
    if not (bundles / LIVE).exists():
        write_live_list(bundles, before)  # before the first segment: segments without a list are damage
    (bundles / LIVE_FOLDER).mkdir(exist_ok=True)
    earlier, last = before.segments[:-1], before.segments[-1:]
    if not last or last[0].is_compacted or last[0].num_bytes >= MAX_SEGMENT_BYTES:
        earlier, last = before.segments, (new_segment(bundles, before.sequence + 1),)
    num_bytes = _write_behind(bundles / LIVE_FOLDER / last[0].name, last[0].num_bytes, content)
    sequence = before.sequence + len(changes)
    lock.check()
    write_live_list(
        bundles,
        before.model_copy(
            update={
                "sequence": sequence,
                "segments": (*earlier, Segment(name=last[0].name, num_bytes=num_bytes)),
            }
        ),
    )
    return sequence


def new_segment(bundles: Path, sequence: int) -> Segment:
    """Make an empty segment for changes from a sequence number on. It counts once it is listed."""
    segment = Segment(name=f"{sequence:016d}-{secrets.token_hex(4)}.items", num_bytes=len(MAGIC))
    path = bundles / LIVE_FOLDER / segment.name
    with path.open("xb") as file:
        file.write(MAGIC)
    sync(path)
    sync(path.parent)
    sync(bundles)
    return segment


def _write_behind(path: Path, committed: int, content: bytes) -> int:
    """Write behind the committed part of a segment, to the disk, and return the new length."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BundleDamagedError(f"{path}: listed, but missing. {_REPAIR}") from None
    try:
        size = os.fstat(descriptor).st_size
        if size < committed:
            raise BundleDamagedError(f"{path}: {size} bytes, {committed} are listed: cut off. {_REPAIR}")
        if size > committed:
            _log.warning("%s: %d bytes of a writer that died are cut off", path, size - committed)
            os.ftruncate(descriptor, committed)
        try:
            written = 0
            while written < len(content):
                num_bytes = os.pwrite(descriptor, content[written:], committed + written)
                if not num_bytes:
                    raise OSError(errno.EIO, "nothing could be written", str(path))
                written += num_bytes
            os.fdatasync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, committed)
            raise
    finally:
        os.close(descriptor)
    return committed + len(content)


_REPAIR: Final = "Put back a copy, or keep what is intact: re4 items repair"


def is_compaction_due(num_bytes: int, compacted_bytes: int) -> bool:
    """Return whether most of the segments' bytes may be superseded."""
    return num_bytes > 2 * compacted_bytes + (MAX_SEGMENT_BYTES >> 2)
