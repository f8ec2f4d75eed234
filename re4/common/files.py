"""Files that appear complete or not at all, whatever happens while they are written."""

import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_CHUNK_BYTES: Final = 4 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; the file written there replaces `path` when the block succeeds.

    The content is on disk before the name changes. If the block raises, `path` is unchanged. The file gets
    the permissions of a new file here, even if the writer restricts them to its user, as safetensors does.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        usual = part.stat().st_mode
        yield part
        part.chmod(stat.S_IMODE(part.stat().st_mode | usual))
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def parts_in(folder: Path) -> set[Path]:
    """Return the temporary files of `replacing` in a folder: of running writers and of killed ones."""
    return set(folder.glob(".*.part"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object, indented for reading."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def crc32_of(path: Path) -> int:
    """Return a checksum of a file: it detects accidental damage, not deliberate changes."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total = zlib.crc32(chunk, total)
    return total


def sync(path: Path) -> None:
    """Wait until the content of a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
