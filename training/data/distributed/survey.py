"""The survey of an event log by a cluster: its files, its chunks, and the types of its columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from re4.common.console import Bar
from re4.common.errors import UsageError
from re4.common.ray_cluster import RayCluster
from re4.training.data.distributed.chunks import Chunk, LogFormat, chunks_of, is_readable, schema_of
from re4.training.data.distributed.reading import ChunkCounts, Exchange, count_chunk, survey_chunk
from re4.training.data.event_preparation import EventsRequest
from re4.training.data.events import check_complete, check_id_types, check_types, lines_of
from re4.training.data.invalid_events import NUM_SHOWN, refuse_no_valid
from re4.training.data.tables.open_table import (
    Table,
    check_alike,
    check_columns,
    open_table,
    parts_of,
    suffix_of,
)
from re4.training.data.tables.tombstones import read_tombstones
from re4.training.data.timestamps import Timestamps, check_time_type

MAX_PARTITIONS: Final = 512
_MAX_CHUNKS: Final = 1_024
_TEXT: Final = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the pieces of work. For larger logs they grow, so that the number of pieces has a bound."""

    chunk_rows: int = 4_000_000
    """Rows of parquet in a chunk."""
    chunk_bytes: int = 256 << 20
    """Bytes of text in a chunk."""
    partition_events: int = 4_000_000
    """Events in a partition of users."""
    range_items: int = 4_000_000
    """Items in a partition of items, and codes in a range of item codes."""
    slab_events: int = 20_000_000
    """Events that this process writes at a time."""
    key_bits: int = 64
    """Of the keys of item ids that are texts."""


@dataclass(frozen=True, kw_only=True)
class SurveyedLog:
    """A log whose columns are known."""

    file: Path | str
    format: LogFormat
    chunks: Sequence[Chunk]
    exchange: Exchange
    timestamps: Timestamps
    """Their notation."""
    dropped: dict[str, int]
    """Counts by reason."""
    examples: list[str]
    """The first invalid events that were dropped, a line of text each."""


def survey_log(cluster: RayCluster, request: EventsRequest, bar: Bar, sizes: Sizes) -> SurveyedLog:
    """Open a log, and decide the types of its columns as the local engine does.

    Raises:
        UsageError: The log is a data frame.
        DataError: As `read_events`.
    """
    return _Survey(cluster, request, bar, sizes).run()


class _Survey:
    def __init__(self, cluster: RayCluster, request: EventsRequest, bar: Bar, sizes: Sizes) -> None:
        self._cluster = cluster
        self._request = request
        self._bar = bar
        self._sizes = sizes
        self._dropped: dict[str, int] = {}
        self._examples: list[str] = []

    def run(self) -> SurveyedLog:
        table, log, chunks = self._open()
        exchange, timestamps = self._survey(table, log, chunks)
        return SurveyedLog(
            file=table.file,
            format=log,
            chunks=chunks,
            exchange=exchange,
            timestamps=timestamps,
            dropped=self._dropped,
            examples=self._examples,
        )

    def _results(self, references: Sequence[Any], title: str) -> list[Any]:
        return self._cluster.results(references, self._bar.note, title)

    def _open(self) -> tuple[Table, LogFormat, list[Chunk]]:
        """Open the log, and cut it into chunks."""
        request = self._request
        if not isinstance(request.source, Path | str):
            raise UsageError(
                "--engine ray reads files that every node can reach; write the data frame as parquet, or use "
                "--engine local"
            )
        path, columns = Path(request.source), request.columns
        parts = [part.absolute() for part in parts_of(path)]
        is_damaged = False
        suffix = suffix_of(parts[0])
        if request.drop_invalid and suffix in _TEXT and path.exists():
            readable = [self._cluster.call(is_readable, part, suffix) for part in parts]
            is_damaged = not all(self._results(readable, "checking files"))
        if is_damaged:
            unknown = LogFormat(
                suffix=suffix,
                schema=pl.Schema(),
                untyped=suffix != ".jsonl",
                columns=columns,
                event_types=tuple(request.event_types),
                is_damaged=True,
            )
            found = [self._cluster.call(schema_of, unknown, part) for part in parts]
            schemas = self._results(found, "reading columns")
            for part, schema in zip(parts, schemas, strict=True):
                check_alike(path, (parts[0], schemas[0]), (part, schema))
            frames = [pl.LazyFrame(schema=schema).select(schemas[0].names()) for schema in schemas]
            empty = pl.concat(frames, how="vertical_relaxed")
            table = Table(file=path, frame=empty, schema=empty.collect_schema(), untyped=unknown.untyped)
        else:
            table = open_table(path)
        check_columns(table, columns.by_option())
        log = LogFormat(
            suffix=suffix,
            schema=table.schema,
            untyped=table.untyped,
            columns=columns,
            event_types=tuple(request.event_types),
            is_damaged=is_damaged,
        )
        return table, log, self._cut(parts, log)

    def _cut(self, parts: Sequence[Path], log: LogFormat) -> list[Chunk]:
        sizes = self._sizes
        if log.is_damaged:
            chunks = [Chunk(part) for part in parts]
        else:
            total = sum(part.stat().st_size for part in parts)
            size = max(sizes.chunk_bytes, total // _MAX_CHUNKS)
            cut = [self._cluster.call(chunks_of, part, log.suffix, sizes.chunk_rows, size) for part in parts]
            chunks = [chunk for some in self._results(cut, "opening files") for chunk in some]
            if len(chunks) > _MAX_CHUNKS and log.suffix == ".parquet" and len(parts) < _MAX_CHUNKS:
                rows = sizes.chunk_rows * len(chunks) // _MAX_CHUNKS
                cut = [self._cluster.call(chunks_of, part, log.suffix, rows, size) for part in parts]
                chunks = [chunk for some in self._results(cut, "opening files") for chunk in some]
        return [replace(chunk, number=number) for number, chunk in enumerate(chunks)]

    def _survey(self, table: Table, log: LogFormat, chunks: Sequence[Chunk]) -> tuple[Exchange, Timestamps]:
        """Decide the types of ids and times, as the local engine does on the whole log."""
        request, columns = self._request, self._request.columns
        votes, firsts = None, [1] * len(chunks)
        if request.drop_invalid or columns.event is not None:
            votes, firsts = self._count(table, log, chunks)
        found = [
            self._cluster.call(survey_chunk, log, chunk, first, votes)
            for chunk, first in zip(chunks, firsts, strict=True)
        ]
        surveys = self._results(found, "checking events")
        if request.drop_invalid:
            texts: dict[str, list[str]] = {}
            for each in surveys:
                for reason, number in each.dropped.items():
                    self._dropped[reason] = self._dropped.get(reason, 0) + number
                    name = reason.removeprefix("events_")
                    texts[name] = [*texts.get(name, []), *each.examples.get(name, [])][:NUM_SHOWN]
            self._examples += [text for some in texts.values() for text in some]
        ids = reduce(add, (each.ids for each in surveys))
        times = reduce(add, (each.times for each in surveys))
        if request.drop_invalid:
            refuse_no_valid(table.file, ids.num_events, self._examples)
        schema = surveys[0].schema
        check_id_types(table, schema, columns)
        check_complete(table, lines_of(table, columns), columns, ids)
        where = f"{table.file}: column {columns.timestamp!r}"
        check_time_type(where, times.dtype)
        notation, units_per_second = times.notation(where)
        values = pl.Series(dtype=pl.Float64 if times.form.is_float() else pl.Int64)
        even = -(-ids.num_events // self._sizes.partition_events)
        num_partitions = min(MAX_PARTITIONS, max(self._cluster.num_cores, even))
        exchange = Exchange(
            kinds=ids.kinds(schema),
            time_form=times.form,
            units_per_second=units_per_second,
            votes=votes,
            tombstones=read_tombstones(Path(table.file)),
            num_user_partitions=num_partitions,
            num_item_partitions=max(1, num_partitions // 4),
            key_bits=self._sizes.key_bits,
        )
        return exchange, Timestamps(values=values, notation=notation, units_per_second=units_per_second)

    def _count(
        self, table: Table, log: LogFormat, chunks: Sequence[Chunk]
    ) -> tuple[npt.NDArray[np.int64] | None, list[int]]:
        """Return the votes on the notation of times, and the number of the first event of each chunk."""
        request, column = self._request, self._request.columns.event
        found = [self._cluster.call(count_chunk, log, chunk, request.drop_invalid) for chunk in chunks]
        counts: list[ChunkCounts] = self._results(found, "counting events")
        if num_damaged := sum(each.num_damaged for each in counts):
            self._dropped["damaged_lines"] = num_damaged
            self._examples += [text for each in counts for text in each.damaged][:NUM_SHOWN]
        if column is not None:
            by_type: dict[str | None, int] = {}
            for each in counts:
                for name, number in each.by_type.items():
                    by_type[name] = by_type.get(name, 0) + number
            self._dropped["events_of_other_types"] = check_types(table, column, request.event_types, by_type)
        ends = np.cumsum([1, *(each.num_events for each in counts)])
        votes = [each.votes for each in counts if each.votes is not None]
        return np.sum(votes, axis=0) if votes else None, ends[:-1].tolist()
