"""Opening a table file (parquet, csv, tsv, jsonl) lazily, by its extension.

It knows nothing of what the columns mean. Columns of csv and tsv files are all text here: whoever knows a
column's meaning decides its type, so that no id is read as a number by accident.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from re4.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table file that was opened, but not read yet."""

    file: Path
    """The file."""
    frame: pl.LazyFrame
    """Its rows, in file order."""
    schema: pl.Schema
    """Its columns and their types."""
    untyped: bool
    """True for csv and tsv: every column is text because the file names no types."""


def _scan_csv(file: Path) -> pl.LazyFrame:
    return pl.scan_csv(file, infer_schema=False, glob=False)


def _scan_tsv(file: Path) -> pl.LazyFrame:
    return pl.scan_csv(file, infer_schema=False, glob=False, separator="\t")


def _scan_jsonl(file: Path) -> pl.LazyFrame:
    # Every line is looked at: a column's type must not depend on how the first lines happen to look.
    return pl.scan_ndjson(file, infer_schema_length=None)


def _scan_parquet(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False)


_FORMATS: Mapping[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": _scan_parquet,
    ".csv": _scan_csv,
    ".tsv": _scan_tsv,
    ".jsonl": _scan_jsonl,
}


def open_table(file: Path) -> Table:
    """Open a table file by its extension; csv, tsv and jsonl may end in `.gz`.

    Raises:
        DataError: The file is missing, empty, of an unknown extension, or unreadable.
    """
    name = file.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in _FORMATS or (packed and suffix == ".parquet"):
        raise DataError(
            f"{file}: the extension says the format; it must be one of {', '.join(_FORMATS)} "
            "(csv, tsv and jsonl also with .gz); rename or convert the file"
        )
    check_file(file)
    with reading(file):
        frame = _FORMATS[suffix](file)
        schema = frame.collect_schema()
    return Table(file=file, frame=frame, schema=schema, untyped=suffix in (".csv", ".tsv"))


def check_file(file: Path) -> None:
    """Check that a file is there and is not empty.

    Raises:
        DataError: It is not.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist; check the path")
    if not file.is_file():
        raise DataError(f"{file} is not a file; name one file")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty (0 bytes)")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what goes wrong while `file` is read into a DataError that names it."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{file} is empty: it has no rows and no header") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file} cannot be read: {first}; repair the file or write it again") from error


def check_columns(table: Table, options: Mapping[str, str]) -> None:
    """Check that the columns named by command-line options are there.

    Args:
        table: The opened file.
        options: Column name by the option that names it, such as `--user-column`.

    Raises:
        DataError: Columns are missing, or one column was named twice.
    """
    missing = {option: column for option, column in options.items() if column not in table.schema}
    if missing:
        wanted = ", ".join(repr(column) for column in missing.values())
        present = ", ".join(repr(column) for column in table.schema)
        raise DataError(
            f"{table.file} has no column {wanted}; it has {present}; name the right one with "
            f"{', '.join(missing)}"
        )
    if len(set(options.values())) < len(options):
        named = ", ".join(f"{option} {column}" for option, column in options.items())
        raise DataError(f"{table.file}: one column is named twice ({named}); name different columns")
