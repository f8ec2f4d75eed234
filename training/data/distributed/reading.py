"""Calls that read a chunk of the log: what decides its types, and its events for each partition.

Legend: E events, U users, N items.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from re4 import __version__
from re4.common.errors import Re4Error
from re4.training.data.distributed.chunks import Chunk, LogFormat, chunk_lines, counted
from re4.training.data.events import IdSurvey, count_types, with_kinds
from re4.training.data.invalid_events import ValidEvents, drop_incomplete, drop_other_times
from re4.training.data.layout import IdKind
from re4.training.data.split import splitmix64
from re4.training.data.tables.ids import encode
from re4.training.data.tables.open_table import reading
from re4.training.data.tables.tombstones import covered
from re4.training.data.timestamps import TimeClasses, TimeSurvey, Unreadable, read_times

_ROW_BITS = 40
"""Of the position of an event, which also has the number of the chunk."""
_PROBE = ("", "a", "item-000001", "0" * 40)


@dataclass(frozen=True, kw_only=True)
class ChunkCounts:
    """What must be known of all chunks before events are dropped."""

    num_events: int
    """Of the types that count."""
    by_type: Mapping[str | None, int]
    votes: npt.NDArray[np.int64] | None
    """On the notation of times, where invalid events are dropped."""
    num_damaged: int
    damaged: Sequence[str]
    """The first damaged lines."""


def count_chunk(log: LogFormat, chunk: Chunk, drop_invalid: bool) -> ChunkCounts:
    """Count the events of a chunk, their types and the notations of their times."""
    with chunk_lines(log, chunk) as (lines, damage), reading(chunk.part):
        by_type = count_types(lines) if log.columns.event is not None else {}
        lines = counted(log, lines)
        votes = None
        if drop_invalid:
            complete = drop_incomplete(chunk.part, lines, log.columns.by_role)
            votes = TimeClasses(complete.valid["timestamp"]).votes
        num_events = int(lines.select(pl.len()).collect(engine="streaming").item())
        return ChunkCounts(
            num_events=num_events,
            by_type=by_type,
            votes=votes,
            num_damaged=damage.num_lines,
            damaged=damage.examples,
        )


@dataclass(frozen=True, kw_only=True)
class ChunkSurvey:
    """What decides the types of the log's columns."""

    ids: IdSurvey
    times: TimeSurvey
    schema: pl.Schema
    dropped: Mapping[str, int]
    """Invalid events by reason."""
    examples: Mapping[str, Sequence[str]]
    """The first ones, by reason."""


def survey_chunk(
    log: LogFormat, chunk: Chunk, first_event: int, votes: npt.NDArray[np.int64] | None
) -> ChunkSurvey:
    """Survey the valid events of a chunk.

    Args:
        log: Its format.
        chunk: The chunk.
        first_event: The number of its first event in the log.
        votes: Of the whole log on the notation of times, where invalid events are dropped.
    """
    with chunk_lines(log, chunk) as (lines, _), reading(chunk.part):
        found = _valid(log, chunk, counted(log, lines), first_event, votes)
        lines = counted(log, lines) if found is None else found.valid.lazy()
        schema = lines.collect_schema()
        times = lines.select(pl.col("timestamp").drop_nulls()).collect(engine="streaming").to_series()
        return ChunkSurvey(
            ids=IdSurvey.of(lines, schema, untyped=log.untyped),
            times=TimeSurvey.of(times),
            schema=schema,
            dropped={} if found is None else found.dropped,
            examples={} if found is None else found.examples,
        )


def _valid(
    log: LogFormat,
    chunk: Chunk,
    lines: pl.LazyFrame,
    first_event: int,
    votes: npt.NDArray[np.int64] | None,
) -> ValidEvents | None:
    if votes is None:
        return None
    names = log.columns.by_role
    found = drop_incomplete(chunk.part, lines, names, first_event=first_event)
    return drop_other_times(found, TimeClasses(found.valid["timestamp"]).readable(votes), names)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How events are sent to the partitions of users and of items."""

    kinds: Mapping[str, IdKind]
    time_form: pl.DataType
    units_per_second: float
    votes: npt.NDArray[np.int64] | None
    tombstones: Mapping[str, int]
    num_user_partitions: int
    num_item_partitions: int
    hash_seed: int = 0
    key_bits: int = 64
    """Of the key of a text; fewer bits are for tests."""
    probe: list[str] = field(default_factory=lambda: _probe())
    """Versions and hashes of some texts: every node must find the same ones."""


class UserSlice(NamedTuple):
    """The events of a chunk that belong to a partition of users, in the order of the log."""

    users_E: npt.NDArray[np.uint32]
    """Positions in `user_ids`."""
    keys_E: npt.NDArray[np.uint64]
    """Keys of the items."""
    times_E: npt.NDArray[Any]
    user_ids: pl.Series
    """In the order of their first event."""
    first_U: npt.NDArray[np.int64]
    """The position of the first event of each user in the log."""


class ItemSlice(NamedTuple):
    """The items of a chunk that belong to a partition of items."""

    item_ids: pl.Series
    keys_N: npt.NDArray[np.uint64]
    first_N: npt.NDArray[np.int64]
    """The position of the first event of each item in the log."""


class ReadCounts(NamedTuple):
    """Facts of reading a chunk."""

    unreadable: Unreadable
    num_forgotten: int
    num_events: int
    """Events that were sent to partitions."""


def exchange_chunk(log: LogFormat, exchange: Exchange, chunk: Chunk) -> tuple[Any, ...]:
    """Return the facts of reading a chunk, a `UserSlice` for each partition, an `ItemSlice` for each one."""
    if exchange.probe != _probe():
        raise Re4Error(
            f"the node {socket.gethostname()} of the Ray cluster has other versions: {_probe()[0]}, and not "
            f"{exchange.probe[0]}, or hashes texts differently; install the same ones on every node"
        )
    with chunk_lines(log, chunk) as (lines, _), reading(chunk.part):
        lines = counted(log, lines)
        found = _valid(log, chunk, lines, 1, exchange.votes)
        lines = lines if found is None else found.valid.lazy()
        frame = with_kinds(lines, exchange.kinds).collect(engine="streaming")
    times = read_times(frame["timestamp"], exchange.time_form)
    unreadable = Unreadable.of(frame["timestamp"], times)
    num_forgotten = 0
    if exchange.tombstones:
        is_kept = ~covered(frame["user"], times, exchange.units_per_second, exchange.tombstones)
        num_forgotten = len(frame) - int(is_kept.sum())
        frame, times = frame.filter(is_kept), times.filter(is_kept)
    users_E, user_ids = encode(frame["user"])
    items_E, item_ids = encode(frame["item"])
    first, item_keys = chunk.number << _ROW_BITS, _keys(item_ids, exchange)
    item_codes_E, keys_E = items_E.to_numpy(), item_keys[items_E.to_numpy()]
    first_N = first + _first_places(item_codes_E, len(item_ids))
    return (
        ReadCounts(unreadable, num_forgotten, len(frame)),
        *_user_slices(users_E.to_numpy(), user_ids, keys_E, times.to_numpy(), first, exchange),
        *_item_slices(item_ids, item_keys, first_N, exchange),
    )


def _user_slices(
    users_E: npt.NDArray[np.uint32],
    user_ids: pl.Series,
    keys_E: npt.NDArray[np.uint64],
    times_E: npt.NDArray[Any],
    first: int,
    exchange: Exchange,
) -> list[UserSlice]:
    number = exchange.num_user_partitions
    first_U = first + _first_places(users_E, len(user_ids))
    partition_U = _partition_of(_keys(user_ids, exchange), number)
    order_U, ends_U = _grouped(partition_U, number)
    order_E, ends_E = _grouped(partition_U[users_E], number)
    place_U = np.empty(len(user_ids), np.uint32)
    place_U[order_U] = np.arange(len(user_ids)) - np.repeat(ends_U[:-1], np.diff(ends_U))
    slices = []
    for partition in range(number):
        events = order_E[ends_E[partition] : ends_E[partition + 1]]
        users = order_U[ends_U[partition] : ends_U[partition + 1]]
        slices.append(
            UserSlice(
                place_U[users_E[events]], keys_E[events], times_E[events], user_ids[users], first_U[users]
            )
        )
    return slices


def _item_slices(
    item_ids: pl.Series, keys_N: npt.NDArray[np.uint64], first_N: npt.NDArray[np.int64], exchange: Exchange
) -> list[ItemSlice]:
    number = exchange.num_item_partitions
    order_N, ends_N = _grouped(_partition_of(keys_N, number), number)
    slices = []
    for partition in range(number):
        items = order_N[ends_N[partition] : ends_N[partition + 1]]
        slices.append(ItemSlice(item_ids[items], keys_N[items], first_N[items]))
    return slices


def _keys(ids: pl.Series, exchange: Exchange) -> npt.NDArray[np.uint64]:
    """Return integers as they are, and hashes of texts."""
    if ids.dtype == pl.Int64:
        return ids.to_numpy().view(np.uint64)
    return ids.hash(exchange.hash_seed).to_numpy() & np.uint64((1 << exchange.key_bits) - 1)


def _partition_of(keys: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint16]:
    return (splitmix64(keys) % np.uint64(number)).astype(np.uint16)


def _grouped(
    partitions: npt.NDArray[np.uint16], number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the places in the order of partitions, and where each partition begins and the last one ends."""
    ends = np.concatenate(([0], np.cumsum(np.bincount(partitions, minlength=number))))
    return np.argsort(partitions, kind="stable"), ends


def _first_places(codes_E: npt.NDArray[np.uint32], number: int) -> npt.NDArray[np.int64]:
    first = np.empty(number, np.int64)
    first[codes_E[::-1]] = np.arange(len(codes_E))[::-1]  # of equal codes, the last assignment stays
    return first


def _probe() -> list[str]:
    return [f"re4 {__version__}, polars {pl.__version__}", *map(str, pl.Series(_PROBE).hash(0))]
