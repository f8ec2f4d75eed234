"""The canary in a worker: which calls it answers, and which it is compared on."""

from dataclasses import dataclass, field
from hashlib import blake2b

from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot


@dataclass(kw_only=True)
class LoadedCanary:
    """A version beside the live one, ready to answer."""

    version: LiveVersion
    """With the hidden and the live items of the directory."""
    share: float
    is_shadow: bool

    def takes(self, key: str) -> bool:
        """Return whether a user or a call is of the canary's share; for one version always the same."""
        name = self.version.current().manifest.version
        digest = blake2b(f"{name}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2.0**64


@dataclass(kw_only=True)
class VersionRouter:
    """Chooses the version of each call."""

    canary: LoadedCanary | None = None
    failure: str = ""
    """Why the canary that the directory names is not used; empty where it is, or where there is none."""
    recalls: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By version: number of answers whose recall was measured, and their mean recall."""

    def answers_with(self, key: str) -> Snapshot | None:
        """Return the canary where it answers a call; None for the live version.

        Args:
            key: The user's id, or that of the call.
        """
        canary = self.canary
        if canary is None or canary.is_shadow or not canary.takes(key):
            return None
        return canary.version.current()

    def compares_with(self, key: str) -> Snapshot | None:
        """Return the shadow where it is to be asked, too; None for no comparison."""
        canary = self.canary
        if canary is None or not canary.is_shadow or not canary.takes(key):
            return None
        return canary.version.current()
