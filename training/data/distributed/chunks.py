"""Chunks of an event log: the parts of files that one call reads."""

import io
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl

from re4.common.errors import DataError
from re4.training.data.events import Columns, lines_of, of_types
from re4.training.data.tables.open_table import FORMATS, Table, reading
from re4.training.data.tables.readable_table import Damage, copy_readable

_BLOCK_BYTES = 16 << 20
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Chunk:
    """Rows of one file."""

    part: Path
    """The file, under an absolute path that every node has."""
    number: int = 0
    """Chunks are numbered in the order of the log."""
    start: int = 0
    """The first row of parquet, or the first byte of text."""
    stop: int | None = None
    """The row, or the byte, after the last one; None for the whole file."""


@dataclass(frozen=True, kw_only=True)
class LogFormat:
    """Facts that a call needs to read a chunk."""

    suffix: str
    schema: pl.Schema
    """Of the whole log."""
    untyped: bool
    columns: Columns
    event_types: tuple[str, ...]
    is_damaged: bool
    """Whether damaged lines of some file are to be left out."""


@contextmanager
def chunk_lines(log: LogFormat, chunk: Chunk) -> Iterator[tuple[pl.LazyFrame, Damage]]:
    """Yield the events of a chunk, of all types, with the columns `user`, `item`, `timestamp` and `type`."""
    with _frame(log, chunk) as (frame, damage):
        if not log.untyped:
            empty = pl.LazyFrame(schema=log.schema)
            frame = pl.concat([empty, frame.select(log.schema.names())], how="vertical_relaxed")
        table = Table(file=chunk.part, frame=frame, schema=log.schema, untyped=log.untyped)
        yield lines_of(table, log.columns), damage


def counted(log: LogFormat, lines: pl.LazyFrame) -> pl.LazyFrame:
    """Return the events of the types that count."""
    return lines if log.columns.event is None else of_types(lines, log.event_types)


@contextmanager
def _frame(log: LogFormat, chunk: Chunk) -> Iterator[tuple[pl.LazyFrame, Damage]]:
    if not chunk.part.exists():
        raise DataError(
            f"{chunk.part} does not exist on the node {socket.gethostname()}; with --engine ray, every node "
            "must reach the log under the same path"
        )
    if log.is_damaged:
        with tempfile.TemporaryDirectory(prefix="re4-readable-") as folder:
            copy, damage = Path(folder) / f"part{log.suffix}", Damage()
            copy_readable(chunk.part, copy, damage)
            yield FORMATS[log.suffix](copy), damage
    elif chunk.stop is None:
        yield FORMATS[log.suffix](chunk.part), Damage()
    elif log.suffix == ".parquet":
        yield FORMATS[log.suffix](chunk.part).slice(chunk.start, chunk.stop - chunk.start), Damage()
    else:
        with chunk.part.open("rb") as file:
            header = file.readline() if chunk.start else b""
            file.seek(chunk.start)
            text = header + file.read(chunk.stop - chunk.start)
        with reading(chunk.part):
            rows = pl.read_csv(io.BytesIO(text), infer_schema=False, separator=_SEPARATORS[log.suffix])
        yield rows.lazy(), Damage()


def chunks_of(part: Path, suffix: str, chunk_rows: int, chunk_bytes: int) -> list[Chunk]:
    """Cut a file into chunks.

    A file of parquet is cut by rows. A large file of csv or tsv is cut behind line ends if it has no quotes,
    because a quoted value can hold line ends. Other files are one chunk.
    """
    if suffix == ".parquet":
        num_rows = int(pl.scan_parquet(part, glob=False).select(pl.len()).collect().item())
        bounds = [*range(0, num_rows, chunk_rows), num_rows]
    elif (
        suffix in _SEPARATORS and part.stat().st_size > chunk_bytes and not part.name.lower().endswith(".gz")
    ):
        bounds = _line_starts(part, chunk_bytes)
    else:
        return [Chunk(part)]
    if len(bounds) < 3:
        return [Chunk(part)]
    return [Chunk(part, 0, start, stop) for start, stop in pairwise(bounds)]


def _line_starts(part: Path, chunk_bytes: int) -> list[int]:
    """Return starts of lines, about a chunk apart, and the size of the file; empty if it has quotes."""
    starts, position = [0], 0
    with part.open("rb") as file:
        header = file.readline()
        if not header.strip() or not header.removeprefix(b"\xef\xbb\xbf").isascii():
            return []
        file.seek(0)
        while block := file.read(min(_BLOCK_BYTES, chunk_bytes)):
            if b'"' in block or b"\0" in block:
                return []
            least = starts[-1] + max(chunk_bytes, len(header)) - position
            if least < len(block) and (end := block.find(b"\n", max(0, least))) >= 0:
                starts.append(position + end + 1)
            position += len(block)
    return [*starts, position] if starts[-1] < position else starts


def is_readable(part: Path, suffix: str) -> bool:
    """Return whether a file of text can be read to its end."""
    try:
        for _ in FORMATS[suffix](part).collect_batches():
            pass
    except pl.exceptions.PolarsError:
        return False
    return True


def schema_of(log: LogFormat, part: Path) -> pl.Schema:
    """Return the columns of a file, without its damaged lines."""
    with _frame(log, Chunk(part)) as (frame, _):
        return frame.collect_schema()
