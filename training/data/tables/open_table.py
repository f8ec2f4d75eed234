"""Open a table lazily: a file or a folder of parts (parquet, csv, tsv, jsonl), or a data frame.

Columns of csv and tsv files are all text here. The caller decides the type of a column, so that no
id is read as a number by accident.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import polars as pl

from re4.common.errors import DataError
from re4.training.data.tables.diagnose import diagnose

A_FRAME: Final = "the data frame"
"""How messages and `dataset.json` name a table that is no file."""

_OTHER_TABLES: Final = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folders of table formats whose files also hold deleted rows."""


class ArrowFrame(Protocol):
    """A data frame of a library with the Arrow PyCapsule interface: polars, pandas, pyarrow, …"""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the frame as an Arrow stream."""


TableSource: TypeAlias = Path | str | pl.LazyFrame | ArrowFrame
"""The path of a file or of a folder of parts; or a data frame of polars, pandas, pyarrow or the like."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that is opened, but not read yet."""

    file: Path | str
    """The file, or the folder of its parts; `A_FRAME` for a data frame."""
    frame: pl.LazyFrame
    """Its rows, in file order, one part after the other."""
    schema: pl.Schema
    """Its columns and their types."""
    untyped: bool
    """True for csv and tsv, where every column is text."""


def _scan_csv(file: Path) -> pl.LazyFrame:
    return pl.scan_csv(file, infer_schema=False, glob=False)


def _scan_tsv(file: Path) -> pl.LazyFrame:
    return pl.scan_csv(file, infer_schema=False, glob=False, separator="\t")


def _scan_jsonl(file: Path) -> pl.LazyFrame:
    # The types are inferred from every line, not from the first ones.
    return pl.scan_ndjson(file, infer_schema_length=None)


def _scan_parquet(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False)


FORMATS: Mapping[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": _scan_parquet,
    ".csv": _scan_csv,
    ".tsv": _scan_tsv,
    ".jsonl": _scan_jsonl,
}


def open_table(source: TableSource) -> Table:
    """Open a table: a file or a folder of parts, by its extension, or a data frame.

    Files of csv, tsv and jsonl may end in `.gz`. All parts have the same columns. Where their types
    differ, a column's type is one that holds them all.

    Raises:
        DataError: A file is missing, empty, of an unknown extension, or unreadable; parts differ;
            or the source is neither a path nor a data frame.
    """
    if not isinstance(source, Path | str):
        frame = _lazy_frame(source)
        with reading(A_FRAME):
            return Table(file=A_FRAME, frame=frame, schema=frame.collect_schema(), untyped=False)
    path = Path(source)
    parts = parts_of(path)
    for part in parts:
        check_file(part)
    suffixes = {suffix_of(part): part for part in parts}
    if len(suffixes) > 1:
        one, other, *_ = suffixes.values()
        raise DataError(f"{path} holds files of different formats, such as {one} and {other}; keep one")
    (suffix,) = suffixes
    frames, schemas = [], []
    for part in parts:
        with reading(part):
            frames.append(FORMATS[suffix](part))
            schemas.append(frames[-1].collect_schema())
        check_alike(path, (parts[0], schemas[0]), (part, schemas[-1]))
    with reading(path):
        frame = pl.concat([frame.select(schemas[0].names()) for frame in frames], how="vertical_relaxed")
        schema = frame.collect_schema()
    return Table(file=path, frame=frame, schema=schema, untyped=suffix in (".csv", ".tsv"))


def parts_of(path: Path) -> list[Path]:
    """Return the files of a table: the file itself, or all files below a folder, sorted by their
    paths.

    Files and folders whose names begin with `_` or `.` (`_SUCCESS`, `.part-0.crc`) are skipped.

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


def _lazy_frame(frame: pl.LazyFrame | ArrowFrame) -> pl.LazyFrame:
    if isinstance(frame, pl.LazyFrame):
        return frame
    if not hasattr(frame, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(frame).__name__} is no table; give a path, or a polars or pandas data frame"
        )
    try:
        return pl.DataFrame(frame).lazy()
    except ImportError:  # pandas needs pyarrow for its Arrow interface, and for strings and dates in polars
        columns: Any = frame
        return pl.DataFrame({str(name): _values(columns[name]) for name in columns.columns}).lazy()


def _values(column: Any) -> list[Any]:
    """Return the values of a pandas column; missing ones, NaN and NaT there, become None."""
    return [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]


def check_alike(path: Path, one: tuple[Path, pl.Schema], other: tuple[Path, pl.Schema]) -> None:
    """Check that two parts have the same columns, with types that can be combined."""
    (first, its_types), (second, types) = one, other
    if types.keys() != its_types.keys():
        raise DataError(
            f"{second} has the columns {', '.join(types)}, and {first} has {', '.join(its_types)}; all files "
            f"below {path} must have the same"
        )
    for name, type_ in types.items():
        both = {type_, its_types[name]}
        if pl.String in both and not all(
            each in (pl.String, pl.Categorical, pl.Enum, pl.Null) or each.is_integer() for each in both
        ):
            raise DataError(
                f"column {name!r} is {its_types[name]} in {first} and {type_} in {second}; write it alike"
            )


def suffix_of(file: Path) -> str:
    """Return the extension of a file, without `.gz`.

    Raises:
        DataError: It is none of a table.
    """
    name = file.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in FORMATS or (packed and suffix == ".parquet"):
        raise DataError(
            f"{file}: the extension says the format; it must be one of {', '.join(FORMATS)} "
            "(csv, tsv and jsonl also with .gz); rename or convert the file"
        )
    return suffix


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
def reading(file: Path | str) -> Iterator[None]:
    """Turn an error of polars or of the system while a table is read into a DataError with the
    place.

    Args:
        file: the table's file, the folder of its parts, or `A_FRAME`.
    """
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{file} is empty: it has no rows and no header") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(file, Path):
            for part in parts_of(file):
                diagnose(part, suffix_of(part))
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
        _refuse_other_separator(table)
        wanted = ", ".join(repr(column) for column in missing.values())
        present = ", ".join(repr(column) for column in table.schema)
        raise DataError(
            f"{table.file} has no column {wanted}; it has {present}; name the right one with "
            f"{', '.join(missing)}"
        )
    if len(set(options.values())) < len(options):
        named = ", ".join(f"{option} {column}" for option, column in options.items())
        raise DataError(f"{table.file}: one column is named twice ({named}); name different columns")


def _refuse_other_separator(table: Table) -> None:
    """Refuse a file whose whole header became the name of one column."""
    header = next(iter(table.schema), "")
    if table.untyped and len(table.schema) == 1 and any(sign in header for sign in ";,|\t"):
        raise DataError(
            f"{table.file} begins with {header!r}, taken for one column: columns are separated by commas in "
            ".csv files and by tabs in .tsv files; write it like that, or rename it"
        )
