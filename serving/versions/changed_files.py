"""Whether the files of a version are still those that its check verified.

The supervisor notes inode, size and time of change of every file before the check. A worker compares them
before it loads the version, which costs no read. Where they differ, as after a copy or on a file system
without lasting inodes, the worker verifies every byte again.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from re4.bundle.manifest import Manifest
from re4.bundle.verify import read_manifest, verify_version

FileMarks: TypeAlias = Mapping[str, list[int]]
"""By file name: inode, size, and the time of the last change of content in nanoseconds. The time of the
inode's change is left out: a rebuild changes it when it removes another name of an index file."""

_MAX_FILES: Final = 1_000
"""A version has some twenty. The marks of more are not noted, so that every byte is verified."""

_log = logging.getLogger(__name__)


def file_marks(path: Path) -> FileMarks:
    """Return the marks of the files of a version; none where the folder cannot be read."""
    marks: dict[str, list[int]] = {}
    try:
        for entry in os.scandir(path):
            status = entry.stat(follow_symlinks=False)
            marks[entry.name] = [status.st_ino, status.st_size, status.st_mtime_ns]
            if len(marks) > _MAX_FILES:
                return {}
    except OSError:
        return {}
    return marks


def require_unchanged(path: Path, checked: FileMarks, *, maps_vectors: bool = True) -> Manifest:
    """Return the manifest of a version that has the content that was checked.

    Args:
        path: The version's folder.
        checked: Its marks before the check.
        maps_vectors: As for `verify_version`.

    Raises:
        BundleError: a file has another content, or cannot be read.
    """
    if checked and file_marks(path) == checked:
        return read_manifest(path)
    _log.warning("%s: files were touched since the check: verifying every byte again", path)
    return verify_version(path, maps_vectors=maps_vectors)
