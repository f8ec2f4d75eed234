"""The version that this process answers from: one reference, which is replaced as a whole."""

import asyncio
from dataclasses import dataclass, field

from re4.bundle.hidden_ids import HiddenIds
from re4.common.errors import NotReadyError
from re4.serving.retrieval.live_items.view import LiveItems
from re4.serving.versions.snapshot import Snapshot


@dataclass(kw_only=True)
class LiveVersion:
    """The live version, the newest refused one, the hidden items and the state of the live items."""

    snapshot: Snapshot | None = None
    failed_version: str = ""
    """Name of the published version that could not be loaded; empty where the newest one is live."""
    failure: str = ""
    hidden: HiddenIds = field(default_factory=HiddenIds)
    """Items that no answer may contain, in every version."""
    hidden_failure: str = ""
    """Why the newest list of hidden items is not used; empty where it is."""
    live_sequence: int = 0
    """Sequence number of the last change of live items that answers show."""
    live_failure: str = ""
    """Why newer changes of live items are not used; empty where they are."""
    items_bytes: tuple[int, int] = (0, 0)
    """Size of the segments of live items, and of the compacted one."""
    items_written: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after this process wrote changes of live items."""

    def current(self) -> Snapshot:
        """Return the version that answers the whole of a call.

        Raises:
            NotReadyError: no version is loaded yet.
        """
        if self.snapshot is None:
            raise NotReadyError(
                "no version is loaded yet; call again when the health service reports SERVING"
            )
        return self.snapshot

    def swap(self, snapshot: Snapshot) -> None:
        """Answer from this version from now on. Calls in flight keep the old one, which is freed after them.

        Args:
            snapshot: The version, without the hidden items.
        """
        self.snapshot, self.failed_version, self.failure = snapshot, "", ""

    def hide(self, hidden: HiddenIds, snapshot: Snapshot | None, failure: str) -> None:
        """Leave these items out of every answer.

        Args:
            hidden: The items.
            snapshot: The live version without them; None where no version is live yet.
            failure: Why a newer list is not used; empty where there is none.
        """
        self.hidden, self.hidden_failure = hidden, failure
        self.snapshot = snapshot

    def show_items(self, items: LiveItems | None, sequence: int) -> None:
        """Answer with these live items from now on."""
        if self.snapshot is not None:
            self.snapshot = self.snapshot.with_live(items)
        self.live_sequence = sequence

    def refuse(self, version: str, failure: str) -> None:
        """Keep the live version, and record which version was refused and why."""
        self.failed_version, self.failure = version, failure
