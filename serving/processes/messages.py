"""What the supervisor and its workers say to each other: one JSON object a line, over stdin and stdout.

A worker that reads the end of its stdin has lost its supervisor, and stops. Nothing else ties the two.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from re4.bundle.layout import IdKind
from re4.serving.observability.recall_sample import RecallSample

MAX_LINE_BYTES: Final = 1 << 25
"""Longest line: the largest file of hidden items, every character of it escaped."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """First order: what to be."""

    number: int
    """1 to the number of processes; for the log."""
    host: str
    port: int
    settings: str
    """`ServerSettings.to_json`."""
    path: str | None
    """Folder of the version to begin with; checked. None at a server's start: open the port at once, say
    NOT_SERVING, and wait for `Load` and `Announce`."""
    folder: str
    """A folder that all workers share while the server runs."""
    hidden: dict[str, Any]
    """The fields of `Hide`: what no answer may hold from the first one on."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Answer from the version in this folder, which was checked. Forget what was refused before."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Hide:
    """Keep these items out of every answer, and no others."""

    id_kind: IdKind
    ids: list[Any]
    failure: str
    """Why a newer list is not used; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class Announce:
    """Every worker answers: say SERVING to whoever asks for the health."""


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """The newest version was refused: tell those who ask. What is live stays live."""

    version: str
    failure: str


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Report: this version answers now."""

    version: str
    thread_pools: dict[str, int]
    """Threads of each pool in this process, as its library says, and of the process altogether."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Report: an order could not be carried out."""

    failure: str


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Report: the port is open, and nothing is answered yet but the health."""


Line: TypeAlias = Start | Load | Hide | Announce | Refuse | Opened | Serving | Failed | RecallSample

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Start, Load, Hide, Announce, Refuse, Opened, Serving, Failed, RecallSample)
}


def to_line(message: Line) -> bytes:
    """The message as one line."""
    return json.dumps({type(message).__name__: asdict(message)}).encode() + b"\n"


def from_line(line: bytes) -> Line:
    """The message of a line that `to_line` made."""
    ((kind, values),) = json.loads(line).items()
    message: Line = _KINDS[kind](**values)
    return message
