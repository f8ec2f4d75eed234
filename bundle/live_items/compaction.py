"""Compaction and repair of live items.

    python -m re4.bundle.live_items.compaction BUNDLES    (started by a server, at the lowest priority)

A compaction writes the state of all finished segments into one, beside writers that go on in a new segment,
and then replaces them in the list. If it is killed at any instant, the list names the old segments or the new
one, and the next compaction removes the rest.
"""

import logging
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from re4.bundle.layout import LIVE_FOLDER
from re4.bundle.live_items.live_list import LiveList, Segment, read_live_list, write_live_list
from re4.bundle.live_items.records import ItemId, encode_record
from re4.bundle.live_items.segments import MAGIC, read_segment
from re4.bundle.live_items.state import LiveState
from re4.bundle.live_items.writer import new_segment
from re4.bundle.publishing.directory_lock import live_compaction_lock, live_items_lock
from re4.bundle.publishing.versions import version_names
from re4.bundle.safe_files import is_folder, names_in, open_folder
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError
from re4.common.files import replacing

_SUFFIXES: Final = (".items", ".compacted")

_log = logging.getLogger(__name__)


def compact(bundles: Path, *, adopted: Mapping[ItemId, int] | None = None) -> LiveList:
    """Write the state of the live items into one segment, and remove superseded changes.

    Args:
        bundles: The bundle directory.
        adopted: Items whose present state the catalogue of a rebuild has too, with the sequence number of
            that state. They are dropped where every version in the directory has taken them in.

    Returns:
        The list after the compaction.

    Raises:
        BundleBusyError: another compaction is at work.
        BundleError: the directory cannot be written, or the live items are damaged. They are unchanged.
    """
    try:
        with live_compaction_lock(bundles):
            return _compact(bundles, adopted or {})
    except OSError as error:
        raise BundleError(f"{bundles / LIVE_FOLDER}: cannot be compacted ({error})") from error


def _compact(bundles: Path, adopted: Mapping[ItemId, int]) -> LiveList:
    with live_items_lock(bundles) as lock:
        before = read_live_list(bundles)
        if not before.segments:
            return before
        last = before.segments[-1]
        if not last.is_compacted:  # writers go on in a segment of their own
            started = (*before.segments, new_segment(bundles, before.sequence + 1))
            lock.check()
            write_live_list(bundles, before.model_copy(update={"segments": started}))
    state = LiveState()
    for segment in before.segments:
        state.apply(record for _, record in read_segment(bundles, segment))
    _drop(state, adopted, bundles)
    compacted = _write(bundles, state, before.sequence)
    with live_items_lock(bundles) as lock:
        now = read_live_list(bundles)
        replaced = {segment.name for segment in before.segments}
        if not replaced.issubset(segment.name for segment in now.segments):
            raise BundleDamagedError(f"{bundles / LIVE_FOLDER}: its list changed during the compaction")
        after = now.model_copy(
            update={
                "compacted_sequence": before.sequence,
                "segments": (compacted, *(each for each in now.segments if each.name not in replaced)),
            }
        )
        lock.check()
        write_live_list(bundles, after)
        _remove_unlisted(bundles, after)
    return after


def _drop(state: LiveState, adopted: Mapping[ItemId, int], bundles: Path) -> None:
    """Drop states that no version needs: adopted ones, and evidence of spaces that no version has."""
    manifests = []
    for name in version_names(bundles):
        with suppress(BundleError):
            manifests.append(read_manifest(bundles / name))
    taken = min((manifest.live_sequence for manifest in manifests), default=0)
    for id_, sequence in adopted.items():
        record = state.items.get(id_)
        if record is not None and record.sequence == sequence <= taken:
            del state.items[id_]
    spaces = {manifest.items.space for manifest in manifests}
    for id_, space in list(state.evidence):
        if spaces and space not in spaces:
            del state.evidence[id_, space]


def _write(bundles: Path, state: LiveState, sequence: int) -> Segment:
    name = f"{sequence:016d}-{secrets.token_hex(4)}.compacted"
    with replacing(bundles / LIVE_FOLDER / name) as part, part.open("wb") as file:
        file.write(MAGIC)
        for record in state.records():
            file.write(encode_record(record))
        num_bytes = file.tell()
    return Segment(name=name, num_bytes=num_bytes)


def _remove_unlisted(bundles: Path, live: LiveList) -> None:
    """Remove segments that the list no longer has. Called by the holder of the write lock."""
    listed = {segment.name for segment in live.segments}
    for path in (bundles / LIVE_FOLDER).iterdir():
        if path.name not in listed and path.name.endswith((*_SUFFIXES, ".part")):
            path.unlink(missing_ok=True)


class Repaired(NamedTuple):
    """The outcome of a repair."""

    num_items: int
    """Items with a state."""
    damages: list[str]
    """What could not be read, in words."""


def repair(bundles: Path) -> Repaired:
    """Make the list again from the segments, with every record before the first damaged one of each segment.

    Changes that were not acknowledged may be among them.

    Raises:
        BundleError: the directory cannot be written.
    """
    path = bundles / LIVE_FOLDER
    try:
        with live_compaction_lock(bundles), live_items_lock(bundles) as lock:
            names: set[str] = set()
            if is_folder(path):
                with open_folder(path) as folder:
                    names = {name for name in names_in(folder, where=path) if name.endswith(_SUFFIXES)}
            state, damages = _read_all(bundles, names)
            path.mkdir(exist_ok=True)
            compacted = _write(bundles, state, state.sequence)
            live = LiveList(sequence=state.sequence, compacted_sequence=state.sequence, segments=(compacted,))
            lock.check()
            write_live_list(bundles, live)
            _remove_unlisted(bundles, live)
    except OSError as error:
        raise BundleError(f"{path}: cannot be repaired ({error})") from error
    return Repaired(num_items=len(state.items), damages=damages)


def _read_all(bundles: Path, names: set[str]) -> tuple[LiveState, list[str]]:
    state, damages = LiveState(), []
    compacted = sorted((name for name in names if name.endswith(".compacted")), reverse=True)
    changes = sorted(name for name in names if name.endswith(".items"))
    for name in [*compacted[:1], *changes]:
        known = state.sequence
        size = (bundles / LIVE_FOLDER / name).stat().st_size
        try:
            for _, record in read_segment(bundles, Segment(name=name, num_bytes=size)):
                if record.sequence > known:
                    state.apply([record])
        except BundleDamagedError as error:
            damages.append(str(error))
        if name.endswith(".compacted"):
            state.sequence = max(state.sequence, int(name.partition("-")[0]))
    return state, damages


def main() -> None:
    """Compact the live items of the directory that `argv` names."""
    os.nice(19)
    with suppress(BundleBusyError):
        compact(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
