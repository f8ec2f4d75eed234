"""Find the damage of a table that could not be read: the file and, in text, the line.

It runs after a reading has failed, line by line: a minute or two for 10⁸ lines.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from re4.common.errors import DataError
from re4.training.data.tables.lines import numbered_lines

_NUM_SHOWN: Final = 60
"""Characters of a damaged line in a message."""


def diagnose(part: Path, suffix: str) -> None:
    """Search one file of a table for damage; return if nothing is found.

    Args:
        part: the file.
        suffix: its format: .parquet, .csv, .tsv or .jsonl.

    Raises:
        DataError: with the file, in text the first damaged line, and the damage.
    """
    _LOOKS[suffix](part)


def _look_through_csv(part: Path, delimiter: str = ",") -> None:
    rows = csv.reader((line for _, line in numbered_lines(part)), delimiter=delimiter, strict=True)
    begin = 1
    try:
        num_columns = len(next((row for row in rows if row), []))  # blank lines before the header
        begin = rows.line_num + 1
        for row in rows:
            if len(row) > num_columns:
                raise DataError(
                    f"{part}, line {begin:,}: it has {len(row):,} values, the header has {num_columns:,} "
                    f"columns ({_shown(delimiter.join(row))}); correct it, or quote what holds the separator"
                )
            begin = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{part}, line {begin:,}: {error}; correct its quotes") from error


def _look_through_tsv(part: Path) -> None:
    _look_through_csv(part, "\t")


def _look_through_jsonl(part: Path) -> None:
    for number, line in numbered_lines(part):
        try:
            value = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise DataError(
                f"{part}, line {number:,}: not JSON, {error.msg} ({_shown(line)}); correct the line"
            ) from error
        except (ValueError, RecursionError) as error:  # a number of too many digits, or deep nesting
            raise DataError(f"{part}, line {number:,}: {error} ({_shown(line)}); correct the line") from error
        if not isinstance(value, dict):
            raise DataError(f"{part}, line {number:,}: not a JSON object ({_shown(line)}); correct the line")


def _look_through_parquet(part: Path) -> None:
    try:
        for _ in pl.scan_parquet(part, glob=False).collect_batches():
            pass
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{part} cannot be read: {str(error).splitlines()[0]}; write it again") from error


_LOOKS: Final[dict[str, Callable[[Path], None]]] = {
    ".parquet": _look_through_parquet,
    ".csv": _look_through_csv,
    ".tsv": _look_through_tsv,
    ".jsonl": _look_through_jsonl,
}


def _shown(line: str) -> str:
    line = line.rstrip("\r\n")
    return repr(line if len(line) <= _NUM_SHOWN else line[:_NUM_SHOWN] + "…")
