"""Follows `CURRENT`: finds new versions, has each checked once, and says what is to become of it.

Knows neither processes nor gRPC. A version that fails its check is not looked at again until `CURRENT` is
written anew (a rollback to it, or a repair and a new try).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import live_version
from re4.common.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class GoLive:
    """This version passed its check, or is live already while a newer one was given up."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What `CURRENT` names must not go live."""

    version: str
    """Name of the version, or `CURRENT` where it names none."""
    failure: str


_Mark: TypeAlias = tuple[int, int] | None


class Watcher:
    """The live version of a bundle directory, as far as this server has followed."""

    def __init__(self, bundles: Path, check: Callable[[Path], Awaitable[None]]) -> None:
        """Watch a directory.

        Args:
            bundles: The bundle directory.
            check: Raises BundleError for a version that must not go live.
        """
        self._bundles = bundles
        self._check = check
        self._live: Path | None = None
        self._refused_at: _Mark = None
        self._has_refused = False

    async def first(self) -> Path:
        """The version to start with.

        Raises:
            BundleError: there is none, or it fails its check.
        """
        path = live_version(self._bundles)
        await self._check(path)
        self._live = path
        return path

    async def poll(self) -> GoLive | Refused | None:
        """What changed since the last look; None where nothing did."""
        mark = self._mark()
        if self._has_refused and mark == self._refused_at:
            return None
        version = CURRENT
        try:
            path = live_version(self._bundles)
            version = path.name
            if path != self._live:
                await self._check(path)
            elif not self._has_refused:
                return None
        except (BundleError, OSError) as error:
            self._has_refused, self._refused_at = True, mark
            return Refused(version=version, failure=str(error))
        self._live, self._has_refused = path, False
        return GoLive(path=path)

    def _mark(self) -> _Mark:
        """Tells one writing of `CURRENT` from the next, even of the same name."""
        try:
            status = (self._bundles / CURRENT).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
