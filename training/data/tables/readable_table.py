"""Open a table without its damaged lines, which are counted and shown.

A table is copied, line by line, only where reading it as it is has failed.
"""

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import polars as pl

from re4.common.errors import DataError
from re4.training.data.tables.lines import numbered_lines
from re4.training.data.tables.open_table import Table, TableSource, open_table, parts_of

_TEXT: Final = (".csv", ".tsv", ".jsonl")
_NUM_EXAMPLES: Final = 3
_NUM_SHOWN: Final = 60
"""Characters of a damaged line in a message."""


@dataclass(kw_only=True)
class Damage:
    """The damaged lines of a table."""

    num_lines: int = 0
    examples: list[str] = field(default_factory=list)
    """The first ones, with their places."""

    def add(self, part: Path, number: int, line: str) -> None:
        """Count a damaged line."""
        self.num_lines += 1
        if len(self.examples) < _NUM_EXAMPLES:
            line = line.rstrip("\r\n")
            shown = line if len(line) <= _NUM_SHOWN else line[:_NUM_SHOWN] + "…"
            self.examples.append(f"damaged: {part}, line {number:,} ({shown!r})")


@contextmanager
def readable_table(source: TableSource, *, drop_damaged: bool) -> Iterator[tuple[Table, Damage]]:
    """Yield an opened table, or a temporary copy without its damaged lines where it cannot be read.

    Args:
        source: The table; a copy is made of csv, tsv and jsonl.
        drop_damaged: Whether damaged lines may be dropped.

    Raises:
        DataError: As `open_table`.
    """
    damage = Damage()
    table = _readable(source) if drop_damaged else open_table(source)
    if table is not None:
        yield table, damage
        return
    path = Path(source)  # type: ignore[arg-type]
    parts = parts_of(path)
    suffix = _suffix(parts[0])
    with tempfile.TemporaryDirectory(prefix="re4-readable-") as folder:
        for number, part in enumerate(parts):
            copy_readable(part, Path(folder) / f"{number:06}{suffix}", damage)
        copied = open_table(Path(folder))
        yield Table(file=path, frame=copied.frame, schema=copied.schema, untyped=copied.untyped), damage


def _readable(source: TableSource) -> Table | None:
    """Open a table; return None for a text table that cannot be read to its end.

    Raises:
        DataError: It is missing, or is no text and cannot be opened.
    """
    is_text = (
        isinstance(source, Path | str)
        and Path(source).exists()
        and all(_suffix(part) in _TEXT for part in parts_of(Path(source)))
    )
    try:
        table = open_table(source)
        if is_text:
            for _ in table.frame.collect_batches():
                pass
    except (DataError, pl.exceptions.PolarsError):
        if not is_text:
            raise
        return None
    return table


def copy_readable(part: Path, copy: Path, damage: Damage) -> None:
    """Copy the lines of one file of csv, tsv or jsonl that are not damaged, and count the others."""
    with copy.open("w", encoding="utf-8", newline="") as out:
        if copy.suffix == ".jsonl":
            _copy_jsonl(part, out, damage)
        else:
            _copy_csv(part, out, damage, delimiter="," if copy.suffix == ".csv" else "\t")


def _suffix(part: Path) -> str:
    return Path(part.name.lower().removesuffix(".gz")).suffix


def _copy_csv(part: Path, out: TextIO, damage: Damage, *, delimiter: str) -> None:
    """Copy the rows that have at most as many values as the header; a quote ends with its line."""
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    num_columns = 0
    for number, line in numbered_lines(part):
        try:
            row = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            damage.add(part, number, line)
            continue
        if not row:
            continue
        num_columns = num_columns or len(row)
        if len(row) > num_columns:
            damage.add(part, number, line)
        else:
            writer.writerow(row)


def _copy_jsonl(part: Path, out: TextIO, damage: Damage) -> None:
    for number, line in numbered_lines(part):
        try:
            value = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            damage.add(part, number, line)
            continue
        if isinstance(value, dict):
            out.write(line if line.endswith("\n") else line + "\n")
        elif value is not None:
            damage.add(part, number, line)
