"""A process that records events at a rate while something else is measured."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from re4 import RetrievalClient, ServerError


@contextmanager
def event_load(address: str, item_ids: list[Any], *, events_per_s: float, call_events: int) -> Iterator[Any]:
    """Record events at a rate while the block runs; gives a value that holds the number recorded."""
    context = multiprocessing.get_context("spawn")
    stop, recorded, ready = context.Event(), context.Value("q", 0), context.Event()
    process = context.Process(
        target=_record,
        args=(address, item_ids, events_per_s, call_events, stop, recorded, ready),
        daemon=True,
    )
    process.start()
    try:
        ready.wait(60)
        yield recorded
    finally:
        stop.set()
        process.join(30)
        process.kill()


def _record(
    address: str,
    item_ids: list[Any],
    events_per_s: float,
    call_events: int,
    stop: Any,
    recorded: Any,
    ready: Any,
) -> None:
    interval_s, count = call_events / events_per_s, 0
    with RetrievalClient(address) as client:
        due_s = time.monotonic()
        while not stop.is_set():
            places = range(count, count + call_events)
            users = [f"load-{place % 20_011}" for place in places]
            items = [item_ids[place % len(item_ids)] for place in places]
            try:
                client.record_events(users, items)
                recorded.value += call_events
            except ServerError:
                pass
            ready.set()
            count += call_events
            due_s += interval_s
            time.sleep(max(0.0, due_s - time.monotonic()))
