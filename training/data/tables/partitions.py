"""A table that is a folder of files: which of them are its parts, and in what order.

Spark, BigQuery and nightly jobs write tables like that. It knows nothing of what the files hold.
"""

from pathlib import Path
from typing import Final

from re4.common.errors import DataError

_OTHER_TABLES: Final = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folders by which tables are told whose files hold deleted rows as well."""


def parts_of(path: Path) -> list[Path]:
    """Give the files of a table: the file itself, or those below a folder, in the order of their paths.

    Files and folders whose names begin with `_` or `.` (`_SUCCESS`, `.part-0.crc`) are no parts.

    Raises:
        DataError: The folder has no parts, or not every row in them counts.
    """
    if not path.is_dir():
        return [path]
    for name, kind in _OTHER_TABLES.items():
        if (path / name).exists():
            raise DataError(
                f"{path} is a {kind} table, whose files also hold rows that were deleted: write what it "
                "holds now as plain parquet files"
            )
    parts = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(name.startswith(("_", ".")) for name in file.relative_to(path).parts)
    )
    if not parts:
        raise DataError(f"{path} is a folder without a file in it; name the file, or the folder of its parts")
    return parts
