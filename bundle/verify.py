"""Verification: is a version complete and unchanged?

A version is untrusted until `verify_version` returns. It reads the manifest (JSON, limited in size, strict),
then compares the list of files, their sizes and the SHA-256 of every byte. No array, index or graph is parsed
before; whether those agree with each other is checked by the code that loads them.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from re4.bundle.layout import MANIFEST, is_version_name
from re4.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from re4.bundle.safe_files import names_in, open_folder, open_regular, read_small, sha256_of
from re4.common.errors import BundleDamagedError, BundleError, BundleMismatchError

MAX_HASHING_THREADS: Final = 4
_ADVICE: Final = "Publish the version again, or point CURRENT at another one"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a version; no other file is checked.

    Raises:
        BundleError: the folder or its manifest cannot be used.
        BundleUnavailableError: it cannot be read at this moment.
    """
    with open_folder(path) as folder:
        return _read_manifest(folder, path)


def verify_version(path: Path, *, maps_vectors: bool = True) -> Manifest:
    """Check every byte of a version against its manifest.

    Args:
        path: The version's folder, named like the version.
        maps_vectors: As for `Manifest.needed_files`: a file that is not needed may be missing.

    Returns:
        The manifest.

    Raises:
        BundleDamagedError: the manifest cannot be parsed or names another version; a file is missing, extra,
            not a regular file, or of other size or content.
        BundleMismatchError: all files are intact, but encoder and item vectors have different spaces.
        BundleError: the folder is missing, or was written by code with another schema version.
        BundleUnavailableError: a file cannot be read at this moment: no verdict on the version.
    """
    if not is_version_name(path.name):
        raise BundleError(f"{path}: not named like a version (20260131T235959Z-0123abcd)")
    with open_folder(path) as folder:
        manifest = _read_manifest(folder, path)
        if manifest.version != path.name:
            raise BundleDamagedError(
                f"{path / MANIFEST}: is of version {manifest.version}, the folder is {path.name}. {_ADVICE}"
            )
        needed = manifest.needed_files(maps_vectors=maps_vectors)
        _check_listing(folder, manifest, needed, path)
        for entry in needed:
            _check_size(folder, entry, path)
        _check_contents(folder, needed, path)
    check_spaces(manifest, where=str(path))
    return manifest


def check_spaces(manifest: Manifest, *, where: str) -> None:
    """Refuse an encoder that was trained with other item vectors.

    Raises:
        BundleMismatchError: the two fingerprints differ.
    """
    encoder, items = manifest.model.space, manifest.items.space
    if encoder != items:
        raise BundleMismatchError(
            f"{where}: the encoder was trained with the item vectors {encoder[:12]}…, but the items are of "
            f"{items[:12]}…. Encoder and items must come from one run: export that run again"
        )


def _read_manifest(folder: int, path: Path) -> Manifest:
    where = str(path / MANIFEST)
    with open_regular(MANIFEST, folder=folder, where=where) as descriptor:
        data = read_small(descriptor, max_bytes=MAX_MANIFEST_BYTES, where=where)
    return parse_manifest(data, where=where)


def _check_listing(folder: int, manifest: Manifest, needed: Iterable[FileEntry], path: Path) -> None:
    present = names_in(folder, where=path) - {MANIFEST}
    listed = {entry.name for entry in manifest.files}
    _refuse(manifest.items.required_files(manifest.index) - listed, "not listed in the manifest", path)
    _refuse({entry.name for entry in needed} - present, "missing", path)
    _refuse(present - listed, "not part of the version", path)


def _refuse(names: Iterable[str], what: str, path: Path) -> None:
    if names := sorted(names):
        raise BundleDamagedError(f"{path}: {', '.join(names)}: {what}. {_ADVICE}")


def _check_size(folder: int, entry: FileEntry, path: Path) -> None:
    where = str(path / entry.name)
    with open_regular(entry.name, folder=folder, where=where) as descriptor:
        num_bytes = os.fstat(descriptor).st_size
    if num_bytes != entry.num_bytes:
        raise BundleDamagedError(
            f"{where}: {num_bytes} bytes, the manifest says {entry.num_bytes}: changed. {_ADVICE}"
        )


def _check_contents(folder: int, entries: tuple[FileEntry, ...], path: Path) -> None:
    def check(entry: FileEntry) -> None:
        where = str(path / entry.name)
        with open_regular(entry.name, folder=folder, where=where) as descriptor:
            num_bytes, digest = sha256_of(descriptor)
        if (num_bytes, digest) != (entry.num_bytes, entry.sha256):
            raise BundleDamagedError(
                f"{where}: SHA-256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…: changed. {_ADVICE}"
            )

    with ThreadPoolExecutor(max_workers=min(MAX_HASHING_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(check, entries):
            pass
