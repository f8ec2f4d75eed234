"""The version that this process answers from: one reference, which is replaced as a whole."""

from dataclasses import dataclass, field

from re4.bundle.hidden_ids import HiddenIds
from re4.common.errors import NotReadyError
from re4.serving.versions.snapshot import Snapshot


@dataclass(kw_only=True)
class LiveVersion:
    """The live version, the newest refused one, and the hidden items."""

    snapshot: Snapshot | None = None
    failed_version: str = ""
    """Name of the published version that could not be loaded; empty where the newest one is live."""
    failure: str = ""
    hidden: HiddenIds = field(default_factory=HiddenIds)
    """Items that no answer may contain, in every version."""
    hidden_failure: str = ""
    """Why the newest list of hidden items is not used; empty where it is."""

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

    def refuse(self, version: str, failure: str) -> None:
        """Keep the live version, and record which version was refused and why."""
        self.failed_version, self.failure = version, failure
