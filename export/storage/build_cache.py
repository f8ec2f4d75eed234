"""The finished stages of a build, kept where the next try finds them.

    bundles/.building-<key>/lock        held while a build lives
    bundles/.building-<key>/<stage>     a stage's file: there whole, or not at all

The key says of what the stages are: vectors, index, settings, versions of the libraries. Who builds the same
again goes on from the last finished stage; what a build of something else left is discarded. A build that
ends, well or with an error of ours, leaves nothing; one that was killed or interrupted leaves one folder.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from re4.bundle.layout import BUILDING_PREFIX
from re4.common.errors import ExportError, Re4Error
from re4.common.file_lock import LOCK, remove_unlocked, try_lock, unlock
from re4.common.files import parts_in, replacing

_log = logging.getLogger(__name__)


class Checkpoints:
    """The stages of one build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str) -> Path:
        """Where the file of a stage is, or would be."""
        return self.folder / stage

    def has(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return self.path(stage).exists()

    @contextmanager
    def finishing(self, stage: str) -> Iterator[Path]:
        """Give a path to write the stage's file to; the stage is finished when the block ends well."""
        with replacing(self.path(stage)) as part:
            yield part

    def drop(self, stage: str) -> None:
        """Remove the file of a stage that no later one needs."""
        self.path(stage).unlink(missing_ok=True)


class Room:
    """Where a job keeps the stages of its build until it has ended."""

    def __init__(self, bundles: Path) -> None:
        self._bundles = bundles
        self._folder: Path | None = None
        self._lock: int | None = None

    def stages(self, facts: Mapping[str, Any]) -> Checkpoints:
        """The stages of the build that these facts, in plain values, determine: those finished before, too.

        Called once for a job. What builds of something else left is discarded.

        Raises:
            ExportError: another process builds the same at this moment.
        """
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = self._bundles / f"{BUILDING_PREFIX}{key}"
        for other in sorted(self._bundles.glob(f"{BUILDING_PREFIX}*")):
            if other != folder and remove_unlocked(other):
                _log.info(f"{other}: left by an interrupted build of something else: discarded")
        folder.mkdir(exist_ok=True)
        while (lock := try_lock(folder)) is None:
            if folder.exists():
                raise ExportError(
                    f"{folder}: another process is building this very index. Wait for it to end"
                )
            folder.mkdir(exist_ok=True)  # another one took the young folder for a left-over
        self._folder, self._lock = folder, lock
        for part in parts_in(folder):  # a killed build was in the middle of writing it
            part.unlink()
        if found := sorted(path.name for path in folder.iterdir() if path.name != LOCK):
            _log.info(f"going on where a build was interrupted, with {', '.join(found)}")
        return Checkpoints(folder)

    def clear(self) -> None:
        """The job has ended: nothing stays."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def leave(self) -> None:
        """Let others in."""
        if self._folder is not None and self._lock is not None:
            unlock(self._folder, self._lock)


@contextmanager
def building_room(bundles: Path) -> Iterator[Room]:
    """A room in a bundle directory for the job that the block is.

    Where the block ends, well or with an error that trying again would not change, nothing stays; where it is
    interrupted, its finished stages do.
    """
    room = Room(bundles)
    try:
        yield room
        room.clear()
    except (Re4Error, OSError, MemoryError):
        room.clear()
        raise
    finally:
        room.leave()
