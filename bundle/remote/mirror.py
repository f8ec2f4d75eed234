"""Mirrors: a local bundle directory that follows one in object storage.

Everything that follows a local directory works on a mirror unchanged. A version is downloaded into a staging
folder, verified byte by byte, and renamed; then `CURRENT` is replaced. So a version that is half published,
half downloaded or damaged is never seen. Files that a local version has already are linked, not downloaded.
"""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from re4.bundle.hidden_ids import read_hidden
from re4.bundle.layout import CURRENT, HIDDEN, LIVE, LIVE_FOLDER, MANIFEST, is_version_name
from re4.bundle.live_items.live_list import LiveList, read_live_list
from re4.bundle.manifest import FileEntry
from re4.bundle.publishing.retention import prune
from re4.bundle.publishing.versions import version_names
from re4.bundle.remote.object_store import ObjectStore
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleBusyError, BundleDamagedError, BundleError, BundleUnavailableError
from re4.common.file_lock import lock_file, staging_folder
from re4.common.files import replacing, sync

_log = logging.getLogger(__name__)

_STAGING_PREFIX: Final = ".mirror-"
_LOCK: Final = ".mirror.lock"
_LIVE_COPY: Final = ".mirror.LIVE"
"""`LIVE` as the mirror wrote it: another content means that changes were made here."""
_SPARE_BYTES: Final = 64 << 20


class Mirror:
    """Follows one address into one directory."""

    def __init__(self, store: ObjectStore, bundles: Path, *, num_kept: int = 1) -> None:
        """Read nothing yet.

        Args:
            store: What to follow.
            bundles: The local directory; made where it does not exist.
            num_kept: Versions older than the live one that stay in the directory.
        """
        self._store = store
        self._bundles = bundles
        self._num_kept = num_kept

    def update(self) -> str:
        """Take over the present state, and return the name of the live version.

        Raises:
            BundleError: nothing was pushed there yet, a file is damaged, or live items were changed here.
            BundleUnavailableError: the storage cannot be used at this moment, or the disk is too small.
            BundleBusyError: another mirror follows into this directory.
        """
        try:
            with self._only_one():
                current = self._store.get(CURRENT)
                if current is None:
                    raise BundleError(f"{self._store.url}: nothing was pushed there yet: re4 push")
                version = current.content.decode("ascii", "replace").removesuffix("\n")
                if not is_version_name(version):
                    raise BundleDamagedError(f"{self._store.url}/{CURRENT} holds {version!r:.60}, no version")
                if version not in version_names(self._bundles):
                    self._download(version)
                self._update_hidden()
                self._update_live_items()
                if _content(self._bundles / CURRENT) != current.content:
                    _replace(self._bundles / CURRENT, current.content)
                    _log.info(f"{self._bundles}: {version} of {self._store.url} is live")
                    prune(self._bundles, num_kept=self._num_kept)
                return version
        except OSError as error:
            raise BundleUnavailableError(f"{self._bundles}: cannot be written: {error}") from error

    def follow(self, interval_s: float, stop: threading.Event, on_error: Callable[[Exception], None]) -> None:
        """Update every so many seconds until `stop` is set; any error is reported, and tried again."""
        while not stop.wait(interval_s):
            try:
                self.update()
            except Exception as error:  # no content of the storage ends the following
                on_error(error)

    def follow_in_thread(self, interval_s: float) -> None:
        """Update once, and then in a thread that ends with the process.

        Raises:
            BundleError: as `update`, where no version is in the directory yet; else the error is logged.
        """

        def report(error: Exception) -> None:
            _log.error(f"the mirror is tried again in {interval_s:g} s: {error or type(error).__name__}")

        try:
            self.update()
        except BundleError as error:
            if not (self._bundles / CURRENT).exists():
                raise
            report(error)
        following = (interval_s, threading.Event(), report)
        threading.Thread(target=self.follow, args=following, name="mirror", daemon=True).start()

    def _download(self, version: str) -> None:
        """Make a version in the directory.

        Raises:
            BundleDamagedError: a file is not the one of its manifest.
        """
        manifest = self._store.get(f"{version}/{MANIFEST}")
        if manifest is None:
            raise BundleUnavailableError(
                f"{self._store.url}/{version}/{MANIFEST}: not there, or not any more"
            )
        local = self._local_files()
        with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
            folder = staging / version
            folder.mkdir()
            (folder / MANIFEST).write_bytes(manifest.content)
            entries = read_manifest(folder).files
            missing = [entry for entry in entries if entry.sha256 not in local]
            self._check_room(missing)
            for entry in entries:
                if entry in missing:
                    self._download_file(f"{version}/{entry.name}", folder / entry.name, entry)
                else:
                    os.link(local[entry.sha256], folder / entry.name)
            sync(folder / MANIFEST)
            sync(folder)
            verify_version(folder)
            folder.rename(self._bundles / version)
            sync(self._bundles)

    def _download_file(self, name: str, path: Path, entry: FileEntry) -> None:
        digest = hashlib.sha256()
        with path.open("xb") as file:
            for chunk in self._store.chunks(name, 0, entry.num_bytes):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != entry.sha256:
            raise BundleDamagedError(f"{self._store.url}/{name}: its content is not that of the manifest")

    def _local_files(self) -> dict[str, Path]:
        """Return the files of all local versions by their checksums."""
        found = {}
        for name in version_names(self._bundles):
            try:
                for entry in read_manifest(self._bundles / name).files:
                    path = self._bundles / name / entry.name
                    if path.is_file() and path.stat().st_size == entry.num_bytes:
                        found[entry.sha256] = path
            except BundleError:
                continue
        return found

    def _check_room(self, missing: list[FileEntry]) -> None:
        needed = sum(entry.num_bytes for entry in missing) + _SPARE_BYTES
        free = shutil.disk_usage(self._bundles).free
        if needed > free:
            raise BundleUnavailableError(
                f"{self._bundles}: the next version needs {needed} bytes, {free} are free. Keep fewer "
                "versions (--keep), or give the mirror a larger disk"
            )

    def _update_hidden(self) -> None:
        found = self._store.get(HIDDEN)
        if found is None or _content(self._bundles / HIDDEN) == found.content:
            return
        # A server that starts needs a good list: a damaged one there must not replace it.
        with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
            (staging / HIDDEN).write_bytes(found.content)
            read_hidden(staging)
        _replace(self._bundles / HIDDEN, found.content)

    def _update_live_items(self) -> None:
        found = self._store.get(LIVE)
        here, copy = _content(self._bundles / LIVE), _content(self._bundles / _LIVE_COPY)
        if found is None or here == found.content:
            return
        if here != copy:
            raise BundleError(
                f"{self._bundles / LIVE}: live items were changed in this mirror, which may only follow. "
                f"Make such changes in the directory that is pushed; remove {LIVE} here to follow again"
            )
        with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
            (staging / LIVE).write_bytes(found.content)
            self._download_segments(read_live_list(staging))
        _replace(self._bundles / _LIVE_COPY, found.content)
        _replace(self._bundles / LIVE, found.content)

    def _download_segments(self, live: LiveList) -> None:
        folder = self._bundles / LIVE_FOLDER
        folder.mkdir(exist_ok=True)
        for segment in live.segments:
            path = folder / segment.name
            have = path.stat().st_size if path.exists() else 0
            if have < segment.num_bytes:  # bytes beyond the length that LIVE lists do not count
                with path.open("ab") as file:
                    for chunk in self._store.chunks(f"{LIVE_FOLDER}/{segment.name}", have, segment.num_bytes):
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
        sync(folder)
        listed = {segment.name for segment in live.segments}
        for path in folder.iterdir():
            if path.name not in listed:
                path.unlink()

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        self._bundles.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_file(self._bundles / _LOCK, flags=os.O_RDWR | os.O_CREAT)
        except BlockingIOError:
            raise BundleBusyError(f"{self._bundles}: another mirror follows into this directory") from None
        try:
            yield
        finally:
            os.close(lock)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)
