"""The finished stages of a build, kept for the next attempt.

    bundles/.building-<key>/lock        held while a build lives
    bundles/.building-<key>/<stage>     a stage's file: complete, or absent

The key is a hash of everything that determines the stages: vectors, index, settings, versions of libraries.
The next build of the same continues after the last finished stage; stages of any other build are discarded.
A build that ends, well or with an error of ours, leaves nothing; a killed one leaves one folder.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
        """Return the path of a stage's file, whether it exists or not."""
        return self.folder / stage

    def has(self, stage: str) -> bool:
        """Return whether a stage is finished."""
        return self.path(stage).exists()

    @contextmanager
    def finishing(self, stage: str) -> Iterator[Path]:
        """Yield a path to write the stage's file to; the stage is finished when the block ends well."""
        with replacing(self.path(stage)) as part:
            yield part

    def drop(self, stage: str) -> None:
        """Remove the file of a stage that no later one needs."""
        self.path(stage).unlink(missing_ok=True)


class BuildCache:
    """The place in a bundle directory for the stages of one job's build. A context manager around the job.

    Nothing stays where the job ends, well or with an error that another attempt would meet again. Where it is
    interrupted, the finished stages stay.
    """

    def __init__(self, bundles: Path) -> None:
        self._bundles = bundles
        self._folder: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._folder is None or self._lock is None:
            return
        if error is None or isinstance(error, Re4Error | OSError | MemoryError):
            shutil.rmtree(self._folder, ignore_errors=True)
        unlock(self._folder, self._lock)

    def checkpoints(self, facts: Mapping[str, Any]) -> Checkpoints:
        """Return the stages of the build that some facts determine, including those finished before.

        Call it once for a job. Stages of other builds are discarded.

        Args:
            facts: Plain values.

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
            folder.mkdir(exist_ok=True)  # another process removed the new folder as a left-over
        self._folder, self._lock = folder, lock
        for part in parts_in(folder):  # half written by a build that was killed
            part.unlink()
        if found := sorted(path.name for path in folder.iterdir() if path.name != LOCK):
            _log.info(f"going on where a build was interrupted, with {', '.join(found)}")
        return Checkpoints(folder)
