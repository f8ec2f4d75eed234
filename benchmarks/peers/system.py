"""What a system must be able to say and do to be measured beside the others."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from re4.benchmarks.load_generator.requests import Histories, IdList
from re4.benchmarks.load_generator.transport import Callee


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a system."""

    name: str
    how: str
    """What was set, for the report: in the words of the system's documentation."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What every system serves and is asked."""

    version: Path
    """Folder of the bundle version."""
    histories: Histories
    num_candidates: int
    work: Path
    """Folder that systems may keep built things in."""


class Server(NamedTuple):
    """A server that runs."""

    address: str
    pid: int
    """Of its first process; whatever that started belongs to it."""


class System(Protocol):
    """A kind of server."""

    @property
    def name(self) -> str:
        """On the command line."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def client(self) -> str:
        """How it is called, for people."""

    @property
    def settings(self) -> Sequence[Setting]:
        """The ways to run it."""

    @property
    def efforts(self) -> Sequence[int]:
        """How hard it can be told to search, ascending; only 0 where the index's own tuning decides."""

    def missing(self) -> str | None:
        """Why it cannot be had here; None where it can."""

    def prepare(self, material: Material) -> dict[str, object]:
        """Build what it needs, where that is not there yet; facts for the report."""

    def running(self, material: Material, setting: Setting, effort: int) -> AbstractContextManager[Server]:
        """Run it on the cores of this thread while the block runs, from when it answers."""

    def callee(self) -> Callee:
        """How it is called."""

    def payloads(self, material: Material) -> list[bytes]:
        """The requests, one for each history."""

    def item_ids(self, reply: bytes) -> IdList:
        """The candidates of a reply, best first."""
