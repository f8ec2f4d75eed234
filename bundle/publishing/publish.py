"""Publication of a version: completely or not at all.

A publisher works in a staging folder inside the bundle directory and holds a lock on it:

    bundles/.staging-<random>/lock          locked while the publisher lives
    bundles/.staging-<random>/version/      becomes the version
    bundles/.staging-<random>/CURRENT       becomes CURRENT
    bundles/.staging-<random>/scratch/      temporary files of the build

Data reach the disk before they get their final name: the files, then the manifest, then the folder is renamed
to the version's name, then `CURRENT` is replaced. If the publisher is killed at any instant, `CURRENT` names
the old version or the new one, and both are complete. The lock ends with its process, so the next publisher
removes the remains of dead publishers and leaves the work of living ones.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from re4.bundle.layout import CURRENT, MANIFEST, STAGING_PREFIX, is_file_name
from re4.bundle.manifest import (
    FileEntry,
    IndexInfo,
    ItemsInfo,
    Manifest,
    ModelInfo,
    build_manifest,
    dump_manifest,
)
from re4.bundle.publishing.directory_lock import check_not_mirror
from re4.bundle.publishing.versions import publication, version_names
from re4.bundle.safe_files import names_in, open_folder, open_regular, sha256_of
from re4.bundle.verify import check_spaces
from re4.common.errors import BundleError
from re4.common.file_lock import staging_folder
from re4.common.files import sync

_log = logging.getLogger(__name__)

_VERSION: Final = "version"
_SCRATCH: Final = "scratch"


class StagedVersion:
    """A version before its publication: put the files into `path`, then call `publish` once.

    Temporary files belong into `scratch`.
    """

    def __init__(self, bundles: Path, staging: Path) -> None:
        self.path = staging / _VERSION
        self.scratch = staging / _SCRATCH
        self._bundles = bundles
        self._staging = staging

    def publish(
        self,
        *,
        model: ModelInfo,
        index: IndexInfo,
        items: ItemsInfo,
        evaluation: Mapping[str, JsonValue],
        lineage: Mapping[str, JsonValue],
        live_sequence: int = 0,
        is_live: bool = True,
        index_named: Callable[[str], IndexInfo] | None = None,
    ) -> str:
        """Make the staged files a version, the live one by default.

        Args:
            model: The model.
            index: The index.
            items: The catalogue.
            evaluation: Metrics of the run.
            lineage: Origin of the version.
            live_sequence: Changes of live items up to this sequence number are part of the version.
            is_live: Whether it becomes the live version; otherwise `CURRENT` stays as it is.
            index_named: Names an index outside the version's files after the version, and returns its facts;
                None for an index in a file.

        Returns:
            The version's name.

        Raises:
            BundleError: a file is missing or not a regular file, or a field has a value that readers refuse.
            BundleMismatchError: encoder and items have different spaces.
        """
        if not self.path.is_dir():
            raise BundleError(f"{self.path}: already published, or removed: stage the next version anew")
        entries = _hash_and_sync(self.path, items.required_files(index))
        now = self._next_time()
        for attempt in range(100):
            version = _version_name(now, entries, attempt)
            if index_named is not None:
                index = index_named(version)
            manifest = build_manifest(
                version=version,
                created_at=now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                files=entries,
                model=model,
                index=index,
                items=items,
                evaluation=dict(evaluation),
                lineage=dict(lineage),
                live_sequence=live_sequence,
            )
            check_spaces(manifest, where=str(self.path))
            if self._rename(manifest):
                if is_live:
                    self._swap_current(manifest.version)
                return manifest.version
        raise BundleError(f"{self._bundles}: every name tried for the new version is taken")

    def _next_time(self) -> datetime:
        """Return the time of this publication: later than every version's, even if the clock was set back."""
        now = datetime.now(UTC)
        names = version_names(self._bundles)
        newest = publication(self._bundles / names[-1])[0] if names else None
        if newest is None or now > newest:
            return now
        _log.warning(
            f"the clock is behind the version {names[-1]}: the new version is dated a second after it"
        )
        return newest + timedelta(seconds=1)

    def _rename(self, manifest: Manifest) -> bool:
        """Give the complete version its name; False where another version has it already."""
        _write_and_sync(self.path / MANIFEST, dump_manifest(manifest))
        sync(self.path)
        try:
            self.path.rename(self._bundles / manifest.version)
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                return False
            raise
        sync(self._bundles)
        return True

    def _swap_current(self, version: str) -> None:
        _write_and_sync(self._staging / CURRENT, f"{version}\n".encode("ascii"))
        (self._staging / CURRENT).replace(self._bundles / CURRENT)
        sync(self._bundles)


@contextmanager
def stage_version(bundles: Path) -> Iterator[StagedVersion]:
    """Give a folder for the files of a new version, on the file system of the bundle directory.

    Leaving the block removes all that was not published, and the remains of dead publishers.

    Args:
        bundles: The bundle directory; created where it does not exist.

    Raises:
        BundleError: the directory cannot be created or written to, or the block raised such an error (a full
            disk). `CURRENT` still names a complete version.
    """
    check_not_mirror(bundles)
    try:
        bundles.mkdir(parents=True, exist_ok=True)
        with staging_folder(bundles, STAGING_PREFIX) as staging:
            staged = StagedVersion(bundles, staging)
            staged.path.mkdir()
            staged.scratch.mkdir()
            yield staged
    except OSError as error:
        # NumPy reports an incomplete write of an array without its cause.
        cause = f"{error}: no space left there?" if error.errno is None else f"{error}"
        raise BundleError(f"{bundles}: cannot publish here ({cause})") from error


def _hash_and_sync(path: Path, required: frozenset[str]) -> tuple[FileEntry, ...]:
    """Return size and hash of every staged file, after it was written to disk."""
    entries = []
    with open_folder(path) as folder:
        names = sorted(names_in(folder, where=path) - {MANIFEST})
        if missing := sorted(required - set(names)):
            raise BundleError(f"{path}: cannot be published without {', '.join(missing)}")
        for name in names:
            if not is_file_name(name):
                raise BundleError(
                    f"{path / name}: a version's files have plain names (letters, digits, . _ -)"
                )
            with open_regular(name, folder=folder, where=str(path / name)) as descriptor:
                num_bytes, digest = sha256_of(descriptor)
                os.fsync(descriptor)
            entries.append(FileEntry(name=name, num_bytes=num_bytes, sha256=digest))
    return tuple(entries)


def _version_name(now: datetime, entries: tuple[FileEntry, ...], attempt: int) -> str:
    content = "".join(f"{entry.name}:{entry.sha256}\n" for entry in entries)
    short_hash = hashlib.sha256(f"{attempt}\n{content}".encode()).hexdigest()[:8]
    return f"{now:%Y%m%dT%H%M%SZ}-{short_hash}"


def _write_and_sync(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)
