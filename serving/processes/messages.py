"""The messages between the supervisor and its workers: one JSON object a line, over stdin and stdout.

The supervisor sends commands, a worker reports. A worker that reads the end of its stdin has lost its
supervisor, and stops. Nothing else ties the two.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from re4.bundle.layout import IdKind
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.versions.changed_files import FileMarks

MAX_LINE_BYTES: Final = 1 << 24
"""Longest line in both directions. The largest list of hidden items fits with the largest certificates; a
worker drops longer reports."""


@dataclass(frozen=True, kw_only=True)
class StartWorker:
    """Command, the first one: the worker's identity and settings."""

    number: int
    """1 to the number of processes; for the log."""
    host: str
    port: int
    settings: str
    """`ServerSettings.to_json`."""
    path: str | None
    """Folder of the version to begin with, which was checked. None at a server's start: open the port at
    once, report NOT_SERVING, and wait for `LoadVersion` and `SetServing`."""
    files: FileMarks
    """The files of that version, when it was checked."""
    folder: str
    """A folder that all workers share while the server runs."""
    hidden: dict[str, Any]
    """The fields of `HideItems`: what no answer may hold from the first one on."""
    certificates: dict[str, str] | None = field(default=None, repr=False)
    """`Certificates.to_message` of the last good ones, for the time in which the files cannot be used. None
    without TLS."""


@dataclass(frozen=True, kw_only=True)
class LoadVersion:
    """Command: answer from the version in this folder, which was checked. An earlier refusal is over."""

    path: str
    files: FileMarks
    """Its files, when it was checked."""


@dataclass(frozen=True, kw_only=True)
class HideItems:
    """Command: leave these items out of every answer, and no others."""

    id_kind: IdKind
    ids: list[Any]
    failure: str
    """Why a newer list is not used; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class SetCanary:
    """Command: load this version, which was checked, beside the live one; without a path there is none."""

    path: str | None
    files: FileMarks
    """Its files, when it was checked."""
    share: float
    is_shadow: bool
    failure: str
    """Why the canary that the directory names is not used; empty where it is, or where there is none."""


@dataclass(frozen=True, kw_only=True)
class SetServing:
    """Command: every worker answers, so report SERVING as the health."""


@dataclass(frozen=True, kw_only=True)
class ReadFiles:
    """Command: read tokens, certificates and live items again, also where they have not changed."""


@dataclass(frozen=True, kw_only=True)
class RecordRefusal:
    """Command: the newest version was refused; show that in `Info`. The live version stays live."""

    version: str
    failure: str


@dataclass(frozen=True, kw_only=True)
class ShowRecall:
    """Command: show the measured recall of a version's answers in `Info`."""

    version: str
    num_samples: int
    recall: float


@dataclass(frozen=True, kw_only=True)
class PortOpened:
    """Report: the port is open, and only health is answered yet."""


@dataclass(frozen=True, kw_only=True)
class VersionLoaded:
    """Report: the worker answers from this version now."""

    version: str
    thread_pools: dict[str, int]
    """Threads of each pool in this process, as its library reports, and of the whole process."""


@dataclass(frozen=True, kw_only=True)
class CommandFailed:
    """Report: a command could not be carried out."""

    failure: str


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Report: the event loop runs, and the thread that runs batches has finished one or is idle."""


Command: TypeAlias = (
    StartWorker | LoadVersion | HideItems | SetCanary | SetServing | ReadFiles | RecordRefusal | ShowRecall
)
Report: TypeAlias = PortOpened | VersionLoaded | CommandFailed | Heartbeat | RecallSample
Message: TypeAlias = Command | Report

_TYPES: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        *(StartWorker, LoadVersion, HideItems, SetCanary, SetServing, ReadFiles, RecordRefusal, ShowRecall),
        *(PortOpened, VersionLoaded, CommandFailed, Heartbeat, RecallSample),
    )
}


def to_line(message: Message) -> bytes:
    """Return the message as one line."""
    text = json.dumps({type(message).__name__: vars(message)}, ensure_ascii=False, separators=(",", ":"))
    # Ids and paths may hold lone surrogates, which strict UTF-8 refuses.
    return text.encode("utf-8", "surrogatepass") + b"\n"


def from_line(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        ValueError: the line is not the whole of what `to_line` returned.
    """
    try:
        ((kind, values),) = json.loads(line).items()
        message: Message = _TYPES[kind](**values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{len(line):,} bytes are no message ({type(error).__name__})") from None
    return message
