"""Files that appear whole or not at all, whatever happens while they are written."""

import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_PIECE_BYTES: Final = 4 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its place when the block ends well.

    The content is on disk before the name changes. Where the block raises, `path` is as it was. Whoever may
    read a new file here may read it, even where the writer makes files that only its user may (safetensors).
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
    """What is being written in a folder by `replacing`, or was when a writer was killed."""
    return set(folder.glob(".*.part"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object, indented for reading."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def crc32_of(path: Path) -> int:
    """Checksum of a file's content: finds what disks and copies do to it, not what an enemy does."""
    total = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            total = zlib.crc32(piece, total)
    return total


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
