"""Processes that write at a rate, while something else is measured: recorded events, or changed items."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from re4 import LiveItem, RetrievalClient, ServerError

_NUM_USERS = 20_011
_NUM_ITEMS = 5_000

Write: TypeAlias = Callable[[RetrievalClient, range], object]
"""Sends the writes of some numbers."""


@contextmanager
def event_load(address: str, item_ids: list[Any], *, events_per_s: float, call_events: int) -> Iterator[Any]:
    """Record events at a rate while the block runs; gives a value that holds the number recorded."""
    with _load(address, partial(_record, item_ids), events_per_s, call_events) as count:
        yield count


@contextmanager
def item_load(address: str, id_kind: str, *, items_per_s: float, call_items: int) -> Iterator[Any]:
    """Add and change items at a rate while the block runs; gives a value that holds their number."""
    with _load(address, partial(_upsert, id_kind), items_per_s, call_items) as count:
        yield count


def live_item_id(id_kind: str, number: int) -> Any:
    """Return the id of a new item."""
    return f"live {number}" if id_kind == "string" else -1 - number


@contextmanager
def _load(address: str, write: Write, per_s: float, per_call: int) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    stop, count, ready = context.Event(), context.Value("q", 0), context.Event()
    process = context.Process(
        target=_run, args=(address, write, per_s, per_call, stop, count, ready), daemon=True
    )
    process.start()
    try:
        ready.wait(60)
        yield count
    finally:
        stop.set()
        process.join(30)
        process.kill()


def _run(address: str, write: Write, per_s: float, per_call: int, stop: Any, count: Any, ready: Any) -> None:
    start = 0
    with RetrievalClient(address, timeout_s=60.0) as client:
        due_s = time.monotonic()
        while not stop.is_set():
            try:
                write(client, range(start, start + per_call))
                count.value += per_call
            except ServerError:
                pass
            ready.set()
            start += per_call
            due_s += per_call / per_s
            time.sleep(max(0.0, due_s - time.monotonic()))


def _record(item_ids: list[Any], client: RetrievalClient, numbers: range) -> None:
    users = [f"load-{number % _NUM_USERS}" for number in numbers]
    client.record_events(users, [item_ids[number % len(item_ids)] for number in numbers])


def _upsert(id_kind: str, client: RetrievalClient, numbers: range) -> None:
    client.upsert_items([LiveItem(item_id=live_item_id(id_kind, number % _NUM_ITEMS)) for number in numbers])
