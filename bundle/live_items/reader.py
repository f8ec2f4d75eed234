"""Following the live items of a bundle directory: each read returns the changes since the last one."""

from dataclasses import dataclass, field
from pathlib import Path

from re4.bundle.live_items.live_list import LiveList, read_live_list
from re4.bundle.live_items.records import Record
from re4.bundle.live_items.segments import read_segment
from re4.common.errors import BundleDamagedError


@dataclass(frozen=True, kw_only=True)
class NewChanges:
    """The changes since the last read."""

    records: list[Record] = field(default_factory=list)
    """Their sequence numbers ascend."""
    sequence: int = 0
    """Of the last durable change."""
    is_reset: bool = False
    """Whether earlier changes no longer count: they were compacted before they were read."""
    num_bytes: int = 0
    """Size of all segments."""
    compacted_bytes: int = 0
    """Size of the compacted one."""


class LiveItemsReader:
    """Reads changes in their order, each once. Belongs to one thread."""

    def __init__(self, bundles: Path) -> None:
        """Read nothing yet.

        Args:
            bundles: The bundle directory.
        """
        self._bundles = bundles
        self._sequence = 0
        self._segment = ""
        self._place = 0

    def read(self) -> NewChanges:
        """Return the changes since the last read; at first, all of them.

        Raises:
            BundleError: the list or a segment is damaged. The next read tries the same again.
            BundleUnavailableError: a file cannot be read at this moment.
        """
        live = read_live_list(self._bundles)
        while True:
            try:
                return self._read(live)
            except BundleDamagedError:
                before, live = live, read_live_list(self._bundles)
                if live == before:  # otherwise a compaction removed a segment meanwhile
                    raise

    def _read(self, live: LiveList) -> NewChanges:
        is_reset = self._sequence < live.compacted_sequence or live.sequence < self._sequence
        last = 0 if is_reset else self._sequence
        names = [segment.name for segment in live.segments]
        is_known = self._segment in names and not is_reset
        start = self._place if is_known else 0
        records: list[Record] = []
        for segment in live.segments[names.index(self._segment) if is_known else 0 :]:
            place, start = start, 0
            if segment.is_compacted and not is_reset:
                continue  # all of it was read before
            previous = 0
            for _, record in read_segment(self._bundles, segment, start=place):
                if record.sequence <= previous:
                    raise BundleDamagedError(
                        f"{self._bundles}/live/{segment.name}: sequence {record.sequence} follows {previous}"
                    )
                previous = record.sequence
                if record.sequence > last:
                    records.append(record)
        newest = max([last, *(record.sequence for record in records[-1:])])
        if newest > live.sequence or (newest < live.sequence and live.sequence > live.compacted_sequence):
            raise BundleDamagedError(
                f"{self._bundles}/LIVE: lists changes up to {live.sequence}, its segments end at {newest}"
            )
        if live.segments:
            self._segment, self._place = live.segments[-1].name, live.segments[-1].num_bytes
        else:
            self._segment, self._place = "", 0
        self._sequence = live.sequence
        compacted = sum(segment.num_bytes for segment in live.segments if segment.is_compacted)
        return NewChanges(
            records=records,
            sequence=live.sequence,
            is_reset=is_reset,
            num_bytes=live.num_bytes,
            compacted_bytes=compacted,
        )
