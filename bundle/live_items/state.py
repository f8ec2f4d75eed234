"""The state of live items: the last change of each item, and its evidence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from re4.bundle.layout import IdKind
from re4.bundle.live_items.reader import LiveItemsReader
from re4.bundle.live_items.records import Evidence, ItemId, Record, Removal, Upsert


@dataclass(slots=True)
class SummedEvidence:
    """All evidence of one item in one embedding space."""

    weight: float
    sum_D: NDArray[np.float64]
    sequence: int
    time_ms: int
    first_event: int
    """Recorded events of all items up to the first evidence of this one."""
    last_event: int
    """Those up to its last evidence."""

    @property
    def num_others(self) -> int:
        """Return the number of recorded events of all items from the first evidence to the last."""
        return self.last_event - self.first_event


@dataclass(kw_only=True)
class LiveState:
    """What all changes up to a sequence number come to."""

    sequence: int = 0
    items: dict[ItemId, Record] = field(default_factory=dict)
    """The last upsert or removal of each item."""
    evidence: dict[tuple[ItemId, str], SummedEvidence] = field(default_factory=dict)
    """By item and embedding space."""
    num_events: int = 0
    """Recorded events of all items that the evidence counts."""

    def apply(self, records: Iterable[Record]) -> None:
        """Apply changes in the order of their sequence numbers."""
        for record in records:
            change = record.change
            self.sequence = max(self.sequence, record.sequence)
            if isinstance(change, Evidence):
                self.num_events += change.num_events
                self._add(change, record)
            else:
                self.items[change.id] = record

    def _add(self, change: Evidence, record: Record) -> None:
        found = self.evidence.get((change.id, change.space))
        if found is None or len(found.sum_D) != len(change.sum_D):
            self.evidence[change.id, change.space] = SummedEvidence(
                change.weight,
                change.sum_D.astype(np.float64),
                record.sequence,
                record.time_ms,
                first_event=self.num_events - change.num_earlier,
                last_event=self.num_events,
            )
            return
        found.weight += change.weight
        found.sum_D += change.sum_D
        found.sequence, found.time_ms = record.sequence, record.time_ms
        found.last_event = self.num_events

    def records(self) -> Iterator[Record]:
        """Return the fewest records that come to this state, in the order of sequence numbers."""
        summed, num_before = [], 0
        for (id_, space), each in sorted(self.evidence.items(), key=lambda entry: entry[1].sequence):
            evidence = Evidence(
                id_,
                space,
                each.weight,
                each.sum_D.astype(np.float32),
                num_events=each.last_event - num_before,
                num_earlier=each.num_others,
            )
            num_before = each.last_event
            summed.append(Record(each.sequence, each.time_ms, evidence))
        yield from sorted([*self.items.values(), *summed], key=lambda record: record.sequence)

    def removed(self) -> list[ItemId]:
        """Return the ids of removed items."""
        return [id_ for id_, record in self.items.items() if isinstance(record.change, Removal)]

    def upserts(self) -> list[Upsert]:
        """Return the items that were added or changed, in the order of their last change."""
        return [
            record.change
            for record in sorted(self.items.values(), key=lambda record: record.sequence)
            if isinstance(record.change, Upsert)
        ]


def read_live_state(bundles: Path) -> LiveState:
    """Read the state of the live items of a bundle directory.

    Raises:
        BundleError: the list or a segment is damaged.
    """
    found = LiveItemsReader(bundles).read()
    state = LiveState()
    state.apply(found.records)
    state.sequence = found.sequence
    return state


def as_kind(id_: ItemId, kind: IdKind) -> ItemId | None:
    """Return an id in a catalogue's kind; None where none has it. 123 and "123" are the same id."""
    if kind == "string":
        return str(id_)
    if isinstance(id_, int):
        return id_
    try:
        number = int(id_)
    except ValueError:
        return None
    return number if str(number) == id_ else None
