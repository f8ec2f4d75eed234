"""The parts of the event log: parquet files that `re4 data prepare --events FOLDER` reads as they are.

A part is written whole or not at all, and its name follows from its first entry: a rotation that died is
repeated without an event lost or written twice.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import polars as pl

from re4.common.errors import HistoryStoreError
from re4.common.file_lock import lock_file
from re4.common.files import replacing
from re4.serving.histories.event_log import EventLog, LoggedEvent, Part, user_digest
from re4.training.data.tables.tombstones import FORGOTTEN, read_tombstones

_LOCK: Final = "_lock"


def rotate(log: EventLog, folder: Path) -> int:
    """Write all entries that wait to parts, and return how many entries that were.

    Raises:
        HistoryStoreError: the log or the folder cannot be used. What was not written stays in the log.
    """
    with _only_one(folder):
        num_written, num_entries = 0, -1
        while num_entries:
            num_entries = log.rotate(lambda part: write_part(part, folder))
            num_written += num_entries
        return num_written


def write_part(part: Part, folder: Path) -> None:
    """Write a part and its tombstones."""
    if part.tombstones:
        notes = folder / FORGOTTEN
        notes.mkdir(exist_ok=True, mode=0o700)
        lines = [json.dumps(each._asdict()) + "\n" for each in part.tombstones]
        with replacing(notes / f"{part.name}.jsonl") as file:
            file.write_text("".join(lines), encoding="utf-8")
    if part.events:
        with replacing(folder / f"{part.name}.parquet") as file:
            event_table(part.events).write_parquet(file)


def event_table(events: list[LoggedEvent]) -> pl.DataFrame:
    """Return events as a table; items are integers if all of them are, else texts."""
    items = [event.item for event in events]
    are_ints = all(isinstance(item, int) for item in items)
    return pl.DataFrame(
        {
            "user": pl.Series([event.user_id for event in events], dtype=pl.String),
            "item": pl.Series(items, dtype=pl.Int64)
            if are_ints
            else pl.Series([str(item) for item in items], dtype=pl.String),
            "timestamp": pl.Series([event.time_ms for event in events], dtype=pl.Int64).cast(
                pl.Datetime("ms", "UTC")
            ),
        }
    )


def erase(folder: Path) -> tuple[int, int]:
    """Rewrite the parts without the events of users who were forgotten.

    Returns:
        The number of events removed, and of parts that held them.

    Raises:
        HistoryStoreError: the folder cannot be used.
    """
    tombstones = read_tombstones(folder)
    num_events = num_parts = 0
    if not tombstones:
        return 0, 0
    with _only_one(folder):
        for path in sorted(folder.glob("*.parquet")):
            table = pl.read_parquet(path)
            until_of = {
                user: tombstones[digest]
                for user in table["user"].unique().to_list()
                if (digest := user_digest(user).hex()) in tombstones
            }
            if not until_of:
                continue
            until = pl.col("user").replace_strict(until_of, default=-1, return_dtype=pl.Int64)
            kept = table.filter(pl.col("timestamp").dt.epoch("ms") > until)
            if len(kept) == len(table):
                continue
            num_events, num_parts = num_events + len(table) - len(kept), num_parts + 1
            if kept.is_empty():
                path.unlink()
            else:
                with replacing(path) as file:
                    kept.write_parquet(file)
    return num_events, num_parts


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder while the block runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = lock_file(folder / _LOCK, flags=os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        raise HistoryStoreError(
            f"another process is at work on {folder}; try again when it has ended"
        ) from None
    except OSError as error:
        raise HistoryStoreError(f"the event log {folder} cannot be written: {error.strerror}") from None
    try:
        yield
    except OSError as error:
        raise HistoryStoreError(
            f"the event log {folder} cannot be written: {error.strerror or error}. The events stay in the "
            "store until they can be written"
        ) from None
    finally:
        os.close(lock)
