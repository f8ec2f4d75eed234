"""Follows the file of hidden items: what is hidden now, and the last good list where the file is damaged.

Knows neither processes nor versions.
"""

from dataclasses import dataclass, field
from pathlib import Path

from re4.bundle.hidden_ids import HiddenIds, Mark, hidden_mark, read_hidden
from re4.common.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class NowHidden:
    """What no answer may hold from now on."""

    hidden: HiddenIds = field(default_factory=HiddenIds)
    failure: str = ""
    """Why the newest file is not used; empty where it is."""


class HiddenWatcher:
    """The hidden items of a bundle directory, as far as this server has followed."""

    def __init__(self, bundles: Path) -> None:
        self._bundles = bundles
        self._mark: Mark = None
        self.now = NowHidden()

    def first(self) -> NowHidden:
        """What to start with.

        Raises:
            BundleError: the file is damaged. A server that has never seen a good one must not guess.
        """
        self._mark = hidden_mark(self._bundles)
        self.now = NowHidden(hidden=read_hidden(self._bundles))
        return self.now

    def poll(self) -> NowHidden | None:
        """What changed since the last look; None where nothing did."""
        mark = hidden_mark(self._bundles)
        if mark == self._mark:
            return None
        try:
            self.now = NowHidden(hidden=read_hidden(self._bundles))
        except (BundleError, OSError) as error:
            self.now = NowHidden(hidden=self.now.hidden, failure=str(error))
        self._mark = mark
        return self.now
