"""Read the lines of a text file, plain or gzipped, with their numbers."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from re4.common.errors import DataError


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield every line with its number, from 1, without a byte order mark.

    Raises:
        DataError: A line is not UTF-8, or the file cannot be unpacked or read to its end.
    """
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}, line {number:,}: not UTF-8 text ({error.reason}); convert it to UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read after line {number:,}: {error}; write it again") from error


def _open(file: Path) -> IO[bytes]:
    """Open a file, through gzip if its first bytes are gzip's."""
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(file, "rb")) if packed else file.open("rb")
