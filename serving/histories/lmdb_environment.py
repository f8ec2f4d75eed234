"""The LMDB environment of the embedded store and of the event log: many readers, one writer at a time.

LMDB's own lock admits one writing process, and is freed where the process dies. A commit is on disk when it
returns. A reader sees the last commit at the time when its transaction began.
"""

import errno
import gc
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from re4.common.errors import HistoryStoreError

_MAX_READERS: Final = 1024
_NUM_DATABASES: Final = 4
_FULL_BYTES: Final = 1 << 20
"""A disk with less free space is full."""


class LmdbEnvironment:
    """A folder of LMDB, opened on first use, and opened again after an error that ends it.

    The folder is made by the first write, so that a server that records nothing leaves nothing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open nothing yet.

        Args:
            folder: Folder of the environment. Not on a network file system, whose locks LMDB cannot use.
            max_bytes: Largest size of its file. Nothing is allocated in advance.
        """
        self.folder = folder
        self._file = folder / "data.mdb"
        self._max_bytes = max_bytes
        self._opened: tuple[Any, dict[bytes, Any]] | None = None
        self._is_read_only = False
        """Whether it is open on a read-only file system."""
        self._inode = 0
        self._open_lock = threading.Lock()

    @contextmanager
    def reading(self, name: bytes) -> Iterator[Any]:
        """Give a read transaction on a database; None where nothing was ever written.

        Raises:
            HistoryStoreError: the environment cannot be read.
        """
        with self._errors("read"):
            opened = self._open(is_write=False)
            if opened is None:
                yield None
                return
            environment, databases = opened
            with environment.begin(db=databases[name]) as transaction:
                yield transaction

    @contextmanager
    def writing(self) -> Iterator[tuple[Any, dict[bytes, Any]]]:
        """Give a write transaction and the databases by name; the commit is on disk when the block is left.

        Raises:
            HistoryStoreError: the environment cannot be written. Nothing of the block is kept.
        """
        with self._errors("written"):
            opened = self._open(is_write=True)
            assert opened is not None
            environment, databases = opened
            with environment.begin(write=True) as transaction:
                yield transaction, databases

    def size(self) -> int:
        """Return the bytes of the environment's file."""
        try:
            return self._file.stat().st_blocks * 512
        except OSError:
            return 0

    def close(self) -> None:
        """Close the environment as soon as no transaction uses it; the next use opens it again."""
        with self._open_lock:
            self._opened = None

    def _open(self, *, is_write: bool) -> tuple[Any, dict[bytes, Any]] | None:
        is_usable = not (is_write and self._is_read_only)
        if self._opened is not None and is_usable and self._current_inode() == self._inode:
            return self._opened
        with self._open_lock:
            if is_write and self._is_read_only:
                if not os.access(self.folder, os.W_OK):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
                self._opened = None
            if self._current_inode() != self._inode:  # the folder was removed, to erase it
                self._opened = None
            if self._opened is None:
                if not is_write and not self._current_inode():
                    return None
                import lmdb

                try:
                    self._opened, self._is_read_only = self._opened_as(is_read_only=False), False
                except (lmdb.Error, OSError) as error:
                    if is_write or os.strerror(errno.EROFS) not in str(error):
                        raise
                    self._opened, self._is_read_only = self._opened_as(is_read_only=True), True
                self._inode = self._current_inode()
            return self._opened

    def _opened_as(self, *, is_read_only: bool) -> tuple[Any, dict[bytes, Any]]:
        import lmdb

        if not is_read_only:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

        def opened() -> Any:
            return lmdb.open(
                str(self.folder),
                map_size=self._max_bytes,
                max_dbs=_NUM_DATABASES,
                max_readers=_MAX_READERS,
                mode=0o600,
                readonly=is_read_only,
                readahead=False,  # users are read in random order
            )

        try:
            environment = opened()
        except lmdb.Error as error:
            if "already open" not in str(error):
                raise
            # LMDB opens a folder once in a process. The traceback of an exception, in a cycle, still holds
            # the environment that was closed.
            gc.collect()
            environment = opened()
        try:
            if not is_read_only:
                environment.reader_check()  # frees the places of readers that were killed
            names = (b"histories", b"log", b"meta")
            return environment, {name: environment.open_db(name, create=not is_read_only) for name in names}
        except BaseException:
            environment.close()
            raise

    def _current_inode(self) -> int:
        try:
            return self._file.stat().st_ino
        except OSError:
            return 0

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        import lmdb

        try:
            yield
        except lmdb.MapFullError:
            raise HistoryStoreError(
                f"the store of histories {self.folder} has reached {self._max_bytes:,} bytes "
                "(--max-history-bytes): nothing was recorded. Raise the limit, or lower --max-history-events"
            ) from None
        except (lmdb.PanicError, lmdb.CorruptedError, lmdb.MapResizedError) as error:
            self.close()
            raise self._unusable(done, error) from None
        except (lmdb.Error, OSError) as error:
            raise self._unusable(done, error) from None

    def _unusable(self, done: str, error: Exception) -> HistoryStoreError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        # LMDB reports a write that the disk took only a part of as an input/output error.
        is_short_write = os.strerror(errno.EIO) in str(error) and self._is_disk_full()
        if is_short_write or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            reason = "no space left on device"
        # LMDB's messages begin with the path, which the sentence names already.
        reason = reason.removeprefix(f"{self.folder}: ")
        return HistoryStoreError(
            f"the store of histories {self.folder} cannot be {done}: {reason}. Look at the disk and at the "
            "folder's permissions; it is tried again with the next call"
        )

    def _is_disk_full(self) -> bool:
        try:
            return shutil.disk_usage(self.folder).free < _FULL_BYTES
        except OSError:
            return False
