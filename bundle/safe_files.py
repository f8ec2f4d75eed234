"""Reading of untrusted files: no symbolic link is followed, and a pipe does not block."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from re4.common.errors import TRANSIENT_ERRNOS, BundleDamagedError, BundleError, BundleUnavailableError

CHUNK_BYTES: Final = 4 << 20
"""Bytes of a file that are read and hashed at once."""


def unavailable(error: OSError, where: Path | str) -> BundleUnavailableError | None:
    """Return the error to raise for a condition of the system that may pass; None for any other one."""
    if error.errno not in TRANSIENT_ERRNOS:
        return None
    return BundleUnavailableError(f"{where}: cannot be read at this moment ({error.strerror}): try again")


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Give a descriptor of a real folder, not of a link to one.

    Raises:
        BundleError: there is no such folder.
        BundleUnavailableError: it cannot be read at this moment.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise unavailable(error, path) or BundleError(
            f"{path}: not a folder that can be read ({error.strerror})"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_folder(path: Path) -> bool:
    """Return whether there is a real folder, not a link to one.

    Raises:
        BundleUnavailableError: that cannot be found out at this moment.
    """
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError as error:
        if reason := unavailable(error, path):
            raise reason from error
        return False


def names_in(folder: int, *, where: Path) -> set[str]:
    """Return the names of all entries of an open folder.

    Raises:
        BundleUnavailableError: it cannot be read at this moment.
    """
    try:
        return set(os.listdir(folder))  # Path does not take a descriptor
    except OSError as error:
        raise unavailable(error, where) or error from None


@contextmanager
def open_regular(name: str, *, folder: int, where: str) -> Iterator[int]:
    """Give a descriptor, for reading, of a regular file inside an open folder.

    In the block, too, a condition of the system that may pass raises BundleUnavailableError.

    Args:
        name: The file's name in the folder.
        folder: Descriptor of the folder.
        where: Name of the file in error messages.

    Raises:
        BundleDamagedError: the file is missing or unreadable, or is a link, folder, pipe or device.
        BundleUnavailableError: the file cannot be read at this moment.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise unavailable(error, where) or BundleDamagedError(
            f"{where}: not a regular file that can be read ({error.strerror})"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleDamagedError(f"{where}: not a regular file")
        yield descriptor
    except OSError as error:
        raise unavailable(error, where) or error from None
    finally:
        os.close(descriptor)


def read_small(descriptor: int, *, max_bytes: int, where: str) -> bytes:
    """Read the whole content of a small file.

    Raises:
        BundleDamagedError: the file is larger than allowed.
    """
    content = b""
    while len(content) <= max_bytes:
        part = os.read(descriptor, max_bytes + 1 - len(content))
        if not part:
            return content
        content += part
    raise BundleDamagedError(f"{where}: larger than the {max_bytes} bytes that such a file may have")


def read_named(folder: Path, name: str, *, max_bytes: int) -> bytes | None:
    """Return the content of a small file of a folder; None where there is no such file.

    Raises:
        BundleError: no such folder, or the file is none, or too large.
        BundleUnavailableError: it cannot be read at this moment.
    """
    where = str(folder / name)
    with open_folder(folder) as descriptor:
        if name not in names_in(descriptor, where=folder):
            return None
        with open_regular(name, folder=descriptor, where=where) as file:
            return read_small(file, max_bytes=max_bytes, where=where)


def sha256_of(descriptor: int) -> tuple[int, str]:
    """Return the number of bytes and the SHA-256 (hexadecimal) of a file. Hashing releases the GIL."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    num_bytes = 0
    while got := os.readv(descriptor, [buffer]):
        digest.update(buffer[:got])
        num_bytes += got
    return num_bytes, digest.hexdigest()
