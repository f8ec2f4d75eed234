"""Mirrors: a local bundle directory that follows one in object storage.

Everything that follows a local directory works on a mirror unchanged. A version is downloaded into a staging
folder, verified byte by byte, and renamed; then `CURRENT` is replaced. So a version that is half published,
half downloaded or damaged is never seen. Files that a local version has already are linked, not downloaded.

    .mirror.url       the address; a directory with this file is changed by its mirror alone
    .mirror.lock      held during an update
    .mirror.previous  the version that was live before
    .mirror.LIVE      `LIVE` as it was mirrored: bytes of segments beyond it do not count
"""

import hashlib
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from re4.bundle.hidden_ids import parse_hidden
from re4.bundle.layout import CANARY, CURRENT, HIDDEN, LIVE, MANIFEST, MIRROR_URL, is_version_name
from re4.bundle.live_items.live_list import LiveList, parse_live_list
from re4.bundle.manifest import FileEntry
from re4.bundle.publishing.canary import parse_canary
from re4.bundle.publishing.retention import PRUNED_PREFIX
from re4.bundle.publishing.version_lease import is_served
from re4.bundle.publishing.versions import version_names
from re4.bundle.remote.address import LiveFiles
from re4.bundle.remote.live_pieces import parse_stored_live, read_pieces, remove_unlisted
from re4.bundle.remote.object_store import ObjectStore, StoredObject
from re4.bundle.remote.push import State, read_state, stored_versions
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import (
    BundleBusyError,
    BundleDamagedError,
    BundleError,
    BundleUnavailableError,
    UsageError,
)
from re4.common.file_lock import lock_file, staging_folder
from re4.common.files import replacing, sync

_log = logging.getLogger(__name__)

_STAGING_PREFIX: Final = ".mirror-"
_LOCK: Final = ".mirror.lock"
_PREVIOUS: Final = ".mirror.previous"
_LIVE_COPY: Final = ".mirror.LIVE"
_SPARE_BYTES: Final = 64 << 20
_PATIENCE_S: Final = 10.0
_POLL_S: Final = 0.05


class Mirror:
    """Follows one address into one directory."""

    def __init__(
        self,
        store: ObjectStore,
        bundles: Path,
        *,
        max_bytes: int | None = None,
        is_working_copy: bool = False,
        maps_vectors: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            store: What to follow.
            bundles: The local directory; made where it does not exist.
            max_bytes: Bytes that the directory may take. Versions beside the live one, the one before and
                those that a server uses are removed for it, the oldest first; None removes them at once.
            is_working_copy: Whether commands may change the directory. It then has the manifest of every
                stored version, and changes that were not pushed are discarded by the next update.
            maps_vectors: Whether the servers of the directory map the item vectors also where the index in
                Milvus has them; otherwise that file is left out.
        """
        self._store = store
        self._bundles = bundles
        self._max_bytes = max_bytes
        self._is_working_copy = is_working_copy
        self._maps_vectors = maps_vectors
        self._complete: set[str] = set()
        """Versions whose files this object has seen here."""

    def update(self) -> str:
        """Take over the present state, and return the name of the live version.

        Raises:
            BundleError: nothing was pushed there yet, a file is damaged, or live items were changed here.
            BundleUnavailableError: the storage cannot be used at this moment, or the version does not fit.
            BundleBusyError: another mirror follows into this directory.
        """
        with self.locked():
            state = self.take_over()
        current = state[CURRENT]
        if current is None:
            raise BundleError(f"{self._store.url}: nothing was pushed there yet: re4 push")
        return _version_in(current, self._store.url)

    def take_over(self, live_files: LiveFiles = LiveFiles.ALL) -> State:
        """Take over the present state, which is returned; to be called under the lock.

        Args:
            live_files: The files of the live version and of the canary that are needed; others than all of
                them in a working copy only.
        """
        self._check_directory()
        state = read_state(self._store)
        current, canary, hidden = state[CURRENT], state[CANARY], state[HIDDEN]
        wanted = [] if current is None else [_version_in(current, self._store.url)]
        if canary is not None and canary.content:
            wanted.append(parse_canary(canary.content, f"{self._store.url}/{CANARY}").version)
        if hidden is not None:
            parse_hidden(hidden.content, f"{self._store.url}/{HIDDEN}")
        try:
            if live_files is LiveFiles.ALL:
                for version in wanted:
                    self.fetch(version, wanted)
            if self._is_working_copy:
                self._take_over_manifests(wanted)
                for version in wanted:
                    self._fetch_files(version, live_files)
            else:
                self._replace(MIRROR_URL, f"{self._store.url}\n".encode())
            self._update_live_items(state[LIVE])
            self._replace(HIDDEN, None if hidden is None else hidden.content)
            if current is not None and self._replace(CURRENT, current.content):
                _log.info(f"{self._bundles}: {wanted[0]} of {self._store.url} is live")
                self._evict(wanted)
            self._replace(CANARY, None if canary is None else canary.content or None)
        except OSError as error:
            raise BundleUnavailableError(f"{self._bundles}: cannot be written: {error}") from error
        return state

    def fetch(self, version: str, wanted: Collection[str] = ()) -> None:
        """Make sure that a version's files are here; to be called under the lock.

        Args:
            version: Its name.
            wanted: Versions that must stay here for it.

        Raises:
            BundleError: it cannot be read or written.
        """
        if version in self._complete and (self._bundles / version / MANIFEST).exists():
            return
        if self._files_of(self._bundles / version) is None:
            self._download(version, {version, *wanted})
        self._complete.add(version)

    def _fetch_files(self, version: str, files: LiveFiles) -> None:
        """Make sure that some files of a version are here, whose manifest is."""
        folder = self._bundles / version
        for entry in read_manifest(folder).files:
            if files.include(entry.name) and not (folder / entry.name).exists():
                with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
                    self._download_file(f"{version}/{entry.name}", staging / entry.name, entry)
                    (staging / entry.name).rename(folder / entry.name)

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

    @contextmanager
    def locked(self, patience_s: float = _PATIENCE_S) -> Iterator[None]:
        """Hold the lock of the directory.

        Raises:
            BundleBusyError: another process has held it for so long.
            BundleUnavailableError: the directory cannot be made.
        """
        until = monotonic() + patience_s
        while True:
            try:
                self._bundles.mkdir(parents=True, exist_ok=True)
                lock = lock_file(self._bundles / _LOCK, flags=os.O_RDWR | os.O_CREAT)
                break
            except BlockingIOError:
                if monotonic() >= until:
                    raise BundleBusyError(
                        f"{self._bundles}: another process mirrors {self._store.url} into this directory"
                    ) from None
                sleep(_POLL_S)
            except OSError as error:
                raise BundleUnavailableError(f"{self._bundles}: cannot be written: {error}") from error
        try:
            yield
        finally:
            os.close(lock)

    def _check_directory(self) -> None:
        """Refuse a directory that others write: a mirror removes what object storage does not have."""
        url = (_content(self._bundles / MIRROR_URL) or b"").decode("utf-8", "replace").strip()
        has_other = url not in ("", self._store.url)
        if has_other or (not url and not self._is_working_copy and (self._bundles / CURRENT).exists()):
            owner = f"a mirror of {url}" if url else "a bundle directory that others publish into"
            raise UsageError(f"{self._bundles} is {owner}; give another folder to mirror {self._store.url}")

    def _download(self, version: str, wanted: Collection[str], *, links: bool = True) -> None:
        """Make a version in the directory.

        Raises:
            BundleDamagedError: a file is not the one of its manifest.
            BundleUnavailableError: the storage cannot be used, or the version does not fit.
        """
        manifest = self._manifest(version)
        with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
            folder = staging / version
            folder.mkdir()
            (folder / MANIFEST).write_bytes(manifest)
            entries = read_manifest(folder).needed_files(maps_vectors=self._maps_vectors)
            local = self._local_files() if links else {}
            missing = [entry for entry in entries if entry.sha256 not in local]
            here = {sha256 for sha256, path in local.items() if path.parent.parent == self._bundles}
            num_bytes = sum(entry.num_bytes for entry in entries if entry.sha256 not in here)
            self._make_room(len(manifest) + num_bytes, wanted)
            for entry in entries:
                if entry in missing:
                    self._download_file(f"{version}/{entry.name}", folder / entry.name, entry)
                else:
                    os.link(local[entry.sha256], folder / entry.name)
            sync(folder / MANIFEST)
            sync(folder)
            try:
                verify_version(folder, maps_vectors=self._maps_vectors)
            except BundleDamagedError:
                if not links:
                    raise
            else:
                if (self._bundles / version).exists():  # incomplete
                    self._remove(version)
                folder.rename(self._bundles / version)
                sync(self._bundles)
                return
        self._download(version, wanted, links=False)  # a local file was damaged

    def _manifest(self, version: str) -> bytes:
        found = self._store.get(f"{version}/{MANIFEST}")
        if found is None:
            raise BundleUnavailableError(
                f"{self._store.url}/{version}/{MANIFEST}: not there, or not any more"
            )
        return found.content

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
        """Return the files of all complete versions here and in the directories beside by their checksums."""
        found = {}
        for directory in (lock.parent for lock in self._bundles.parent.glob(f"*/{_LOCK}")):
            for name in version_names(directory):
                for entry in self._files_of(directory / name) or ():
                    found[entry.sha256] = directory / name / entry.name
        return found

    def _files_of(self, folder: Path) -> tuple[FileEntry, ...] | None:
        """Return the needed files of a local version; None where one is missing or of another size."""
        try:
            entries = read_manifest(folder).needed_files(maps_vectors=self._maps_vectors)
            is_complete = all((folder / entry.name).stat().st_size == entry.num_bytes for entry in entries)
        except (BundleError, OSError):
            return None
        return entries if is_complete else None

    def _make_room(self, num_bytes: int, wanted: Collection[str]) -> None:
        """Remove versions until so many more bytes fit.

        Raises:
            BundleUnavailableError: they do not fit.
        """
        limit, used = self._max_bytes, _bytes_below(self._bundles)
        free = shutil.disk_usage(self._bundles).free - _SPARE_BYTES
        if (limit is not None and used + num_bytes > limit) or num_bytes > free:
            self._evict(wanted, num_bytes)
            used = _bytes_below(self._bundles)
            free = shutil.disk_usage(self._bundles).free - _SPARE_BYTES
        if limit is not None and used + num_bytes > limit:
            raise BundleUnavailableError(
                f"{self._bundles}: the next version needs {num_bytes:,} bytes beside the {used:,} of the "
                f"live version and the one before; {limit:,} are allowed. Allow more: --bundles-cache-size"
            )
        if num_bytes > free:
            raise BundleUnavailableError(
                f"{self._bundles}: the next version needs {num_bytes:,} bytes, {max(0, free):,} are free. "
                "Give the mirror a larger disk"
            )

    def _evict(self, wanted: Collection[str], num_bytes: int = 0) -> None:
        """Remove versions that nothing needs, the oldest first, until the limit allows so many more bytes."""
        kept = {*wanted, _text(self._bundles / CURRENT), _text(self._bundles / _PREVIOUS)}
        for name in version_names(self._bundles):
            if name in kept or is_served(self._bundles / name):
                continue
            if self._max_bytes is not None and _bytes_below(self._bundles) + num_bytes <= self._max_bytes:
                return
            self._remove(name)
            _log.info(f"{self._bundles / name}: removed; {self._store.url} still has what it names")
        for left in self._bundles.glob(f"{PRUNED_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _remove(self, version: str) -> None:
        """Take a version's name away, by one rename, and then its files."""
        self._complete.discard(version)
        removed = self._bundles / f"{PRUNED_PREFIX}{secrets.token_hex(4)}-{version}"
        (self._bundles / version).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _take_over_manifests(self, wanted: Collection[str]) -> None:
        """Make the local versions those that are stored: complete where wanted, else the manifest alone."""
        stored = stored_versions(self._store)
        self._evict(wanted)
        for name in version_names(self._bundles):
            if name not in stored:
                self._remove(name)
        for name in stored:
            if not (self._bundles / name).exists():
                manifest = self._manifest(name)
                with staging_folder(self._bundles, _STAGING_PREFIX) as staging:
                    (staging / name).mkdir()
                    (staging / name / MANIFEST).write_bytes(manifest)
                    (staging / name).rename(self._bundles / name)

    def _update_live_items(self, found: StoredObject | None) -> None:
        stored, live = parse_stored_live(found, self._store.url)
        content = None if found is None else stored.live.encode("ascii")
        copy = _content(self._bundles / _LIVE_COPY)
        if content is not None and content != copy:
            known = LiveList() if copy is None else parse_live_list(copy, str(self._bundles / _LIVE_COPY))
            read_pieces(self._store, stored, live, self._bundles, known)
            self._replace(_LIVE_COPY, content)
        if self._replace(LIVE, content) and content is not None:
            remove_unlisted(self._bundles, live)

    def pushed_live_items(self) -> None:
        """Note that the live items here are those of the storage; to be called under the lock."""
        self._replace(_LIVE_COPY, _content(self._bundles / LIVE))

    def _replace(self, name: str, content: bytes | None) -> bool:
        """Replace a small file, or remove it; return whether it was another one."""
        before = _content(self._bundles / name)
        if content == before:
            return False
        if content is None:
            (self._bundles / name).unlink()
            return True
        if name == CURRENT and before is not None:
            self._replace(_PREVIOUS, before)
        with replacing(self._bundles / name) as part:
            part.write_bytes(content)
        return True


def _version_in(current: StoredObject, url: str) -> str:
    version = current.content.decode("ascii", "replace").removesuffix("\n")
    if not is_version_name(version):
        raise BundleDamagedError(f"{url}/{CURRENT} holds {version!r:.60}, no version")
    return version


def _bytes_below(folder: Path) -> int:
    """Return the size of all files below a folder; one of several names counts once."""
    sizes = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                facts = path.stat()
                sizes[facts.st_ino] = facts.st_size
    return sum(sizes.values())


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _text(path: Path) -> str:
    return (_content(path) or b"").decode("ascii", "replace").strip()
