"""From an event log, or ready-split files, to a prepared data set on disk: the steps, in order."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

from pydantic import JsonValue

from re4.common.console import progress
from re4.common.errors import UsageError
from re4.common.extras import require
from re4.training.data import DEFAULT_MAX_USER_EVENTS, DEFAULT_MIN_EVENTS, DEFAULT_SEED
from re4.training.data.catalogue import Catalogue, join_catalogue, read_catalogue
from re4.training.data.dataset import Dataset
from re4.training.data.event_preparation import (
    NUM_STEPS,
    EventsRequest,
    NumberedEvents,
    PreparedEvents,
    SplitBy,
    number_events,
    prepare_events,
)
from re4.training.data.events import Columns
from re4.training.data.layout import SPLITS, SplitName
from re4.training.data.sequences import read_sequences
from re4.training.data.split import HASH_RULE
from re4.training.data.tables.open_table import TableSource
from re4.training.data.tables.row_store import in_memory
from re4.training.data.writing import refuse_existing, write_slabs

Engine = Literal["local", "ray"]

_log = logging.getLogger(__name__)


def prepare_data(
    events: TableSource,
    out: Path | str,
    *,
    catalogue: TableSource | None = None,
    user_column: str = "user",
    item_column: str = "item",
    timestamp_column: str = "timestamp",
    catalogue_item_column: str | None = None,
    min_events: int = DEFAULT_MIN_EVENTS,
    max_user_events: int | None = None,
    event_column: str | None = None,
    event_types: Sequence[str] | None = None,
    drop_invalid: bool = False,
    split: SplitBy = "user",
    seed: int = DEFAULT_SEED,
    cuts: tuple[str, str] | None = None,
    now_s: float | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
) -> Dataset:
    """Prepare a data set for training from an event log, as `re4 data prepare` does.

    Args:
        events: The event log, a user, an item and a timestamp in every row: the path of a file or
            of a folder of files, or a data frame of polars, pandas or another library.
        out: The folder to write; it must not exist, or be empty.
        catalogue: Descriptions to join onto the items (title, genres, …), a row for each item; as
            `events`.
        user_column: The event log's column of user ids.
        item_column: Its column of item ids.
        timestamp_column: Its column of times: since 1970, ISO 8601, or dates.
        catalogue_item_column: The catalogue's column of item ids; None for `item_column`.
        min_events: Users and items with fewer events are dropped, until none are left; 1 drops
            nothing.
        max_user_events: Of users with more events, only the newest ones stay. None drops users that
            stand out (`event_cleaning.py`), and keeps the newest 10,000 events of the others.
        event_column: The event log's column of types of events; None where all events count.
        event_types: The types that count, such as "purchase".
        drop_invalid: Whether damaged lines, events without a user, item or time, and times in another
            notation than that of most events are dropped and counted; otherwise they are an error.
        split: How train, valid and test are separated: by user (80, 10 and 10 % of the users, by a
            hash of the id and the seed), or by time.
        seed: Of the hash that holds out users.
        cuts: The two cuts of a split by time, as ISO 8601; None for about 80, 10 and 10 % of the
            events.
        now_s: Seconds since 1970; events more than a day later are dropped. None for the present
            time.
        engine: Where the log is prepared: in this process, or by a Ray cluster, from files that every
            node can read. The data set is the same.
        ray_address: The address of the cluster; None for the one that Ray finds, or a new one on this
            machine.

    Raises:
        DataError: The input cannot be used, nothing is left of it, or `out` is not free.
        UsageError: A value is not allowed.
    """
    if min_events < 1:
        raise UsageError(f"--min-events is {min_events}; it must be at least 1, which drops nothing")
    if max_user_events is not None and max_user_events < 1:
        raise UsageError(f"--max-user-events is {max_user_events}; it must be at least 1")
    if split not in get_args(SplitBy):
        raise UsageError(f"--split is {split!r}; choose one of {', '.join(get_args(SplitBy))}")
    if event_types and event_column is None:
        raise UsageError("--event-types needs --event-column, the log's column of types of events")
    if cuts is not None and split != "time":
        raise UsageError("--cuts belongs to --split time")
    if engine not in get_args(Engine):
        raise UsageError(f"--engine is {engine!r}; choose one of {', '.join(get_args(Engine))}")
    if engine == "local" and ray_address is not None:
        raise UsageError("--ray-address belongs to --engine ray")
    out = Path(out)
    refuse_existing(out)
    request = EventsRequest(
        source=events,
        columns=Columns(user=user_column, item=item_column, timestamp=timestamp_column, event=event_column),
        event_types=event_types or (),
        drop_invalid=drop_invalid,
        min_events=min_events,
        max_user_events=max_user_events,
        split=split,
        seed=seed,
        cuts=cuts,
        now_s=time.time() if now_s is None else now_s,
    )
    described = _read_catalogue(catalogue, catalogue_item_column or item_column)
    with ExitStack() as stack:
        if engine == "ray":
            require("--engine ray", "ray")
            from re4.training.data.distributed.engine import cluster_engine

            prepare = stack.enter_context(cluster_engine(ray_address))
        else:
            prepare = prepare_events
        bar = stack.enter_context(progress(f"preparing {out}", NUM_STEPS + 1))
        found = prepare(request, bar)
        dataset = _write(out, found.numbered, _prepared(request, found), found.dropped, described)
        bar.advance()
    return dataset


def _prepared(request: EventsRequest, found: PreparedEvents) -> dict[str, JsonValue]:
    """Return the options used and the findings about the log, for `dataset.json`."""
    columns, date_of = request.columns, found.timestamps.date_of
    first, last = found.first_and_last
    most = request.max_user_events
    prepared: dict[str, JsonValue] = {
        "format": "events",
        "events": str(found.file),
        "user_column": columns.user,
        "item_column": columns.item,
        "timestamp_column": columns.timestamp,
        "timestamp_notation": found.timestamps.notation,
        "first_event": date_of(first),
        "last_event": date_of(last),
        "min_events": request.min_events,
        "max_user_events": DEFAULT_MAX_USER_EVENTS if most is None else most,
        "split": request.split,
    }
    if found.stand_out_bound is not None:
        prepared["stand_out_bound"] = found.stand_out_bound
    if columns.event is not None:
        prepared |= {"event_column": columns.event, "event_types": list(request.event_types)}
    if found.cuts is None:
        prepared |= {"split_rule": HASH_RULE, "seed": request.seed}
    else:
        prepared["cuts"] = [date_of(cut, precise=True) for cut in found.cuts]
    for example in found.examples:  # never into the data set: it may name a user
        _log.info("dropped, %s", example)
    if found.advice:
        prepared["advice"] = found.advice
    return prepared


def prepare_sequences(
    files: Mapping[SplitName, Path | str],
    out: Path | str,
    *,
    catalogue: TableSource | None = None,
    catalogue_item_column: str = "item",
) -> Dataset:
    """Prepare a data set from three files that are split already; nothing is filtered.

    Args:
        files: The file of every split: train, valid and test.
        out: The folder to write; it must not exist, or be empty.
        catalogue: Descriptions to join onto the items, as for `prepare_data`.
        catalogue_item_column: The catalogue's column of item ids.

    Raises:
        DataError: The input cannot be used, or `out` is not free.
    """
    out = Path(out)
    refuse_existing(out)
    described = _read_catalogue(catalogue, catalogue_item_column)
    with progress(f"preparing {out}", NUM_STEPS + 1) as bar:
        given = read_sequences({split: Path(files[split]) for split in SPLITS}, bar.advance)
        prepared: dict[str, JsonValue] = {"format": "sequences"}
        prepared |= {split: str(files[split]) for split in SPLITS}
        numbered = number_events(given.sequences, given.users, given.item_ids)
        dataset = _write(out, numbered, prepared, given.dropped, described)
        bar.advance()
    return dataset


def _read_catalogue(source: TableSource | None, item_column: str) -> Catalogue | None:
    return None if source is None else read_catalogue(source, item_column, in_memory)


def _write(
    out: Path,
    numbered: NumberedEvents,
    prepared: Mapping[str, JsonValue],
    dropped: Mapping[str, int],
    catalogue: Catalogue | None,
) -> Dataset:
    items = numbered.item_ids.alias("item_id").to_frame()
    noticed: dict[str, int] = {"items_never_in_train": numbered.num_never_in_train}
    if catalogue:
        joined = join_catalogue(items["item_id"], catalogue)
        items = joined.items
        noticed |= joined.noticed
    return write_slabs(
        out,
        items=items,
        splits=numbered.splits,
        user_id_kind=numbered.user_id_kind,
        slabs=numbered.slabs,
        prepared={
            **prepared,
            "catalogue": str(catalogue.file) if catalogue else None,
            "catalogue_item_column": catalogue.item_column if catalogue else None,
        },
        dropped={**dropped, **noticed},
    )
