"""Telling whether a file was changed, cheaply enough to ask often."""

from pathlib import Path
from typing import TypeAlias

Mark: TypeAlias = tuple[int, int, int] | None


def mark_of(path: Path) -> Mark:
    """Changes when the file, or what it links to, is written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
