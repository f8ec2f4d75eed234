"""The subcommands `re4 histories …`: fill and export a store, and write the event log's parts."""

from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from re4.common import console
from re4.common.errors import UsageError
from re4.serving.histories.settings import HistorySettings
from re4.settings.fields import construct
from re4.settings.options import with_options

if TYPE_CHECKING:
    from re4.serving.histories.lmdb_store import LmdbStore
    from re4.serving.histories.redis_store import RedisStore
    from re4.serving.histories.store import Event
    from re4.training.data.dataset import Dataset

_CHUNK_EVENTS = 20_000

Bundles = Annotated[
    Path | None, typer.Option(help="Bundle directory of the server, for the default of --histories.")
]


@with_options(HistorySettings, "Store")
def load(
    dataset: Annotated[Path, typer.Argument(help="A prepared data set.")],
    bundles: Bundles = None,
    **settings: Any,
) -> None:
    """Fill a store with the users of a prepared data set, such as before the first start.

    A data set holds the order of events, not their times: each user's events get times that end now. They do
    not enter the event log. A second load of the data set adds nothing.

    Example: re4 histories load DATA --bundles bundles
    """
    from re4.training.data.dataset import Dataset

    opened = Dataset.open(dataset)
    store = _store(settings, bundles)
    chosen = construct(HistorySettings, settings)
    num_users = sum(opened.split(split).num_users for split in opened.info.splits)
    num_new, chunk = 0, list["Event"]()
    now_ms = int(time() * 1e3)
    with console.progress(f"loading {dataset}", num_users) as bar:
        for events in _users_of(opened, chosen.max_history_events, now_ms):
            chunk += events
            if len(chunk) >= _CHUNK_EVENTS:
                num_new += sum(store.append(chunk, now_ms))
                chunk = []
            bar.advance()
        num_new += sum(store.append(chunk, now_ms)) if chunk else 0
    store.close()
    console.print_line(f"{num_new:,} events of {num_users:,} users are new in the store")


@with_options(HistorySettings, "Store")
def export(
    out: Annotated[Path, typer.Option(help="The file to write, with the ending .parquet.")],
    bundles: Bundles = None,
    **settings: Any,
) -> None:
    """Write all stored events to one file of parquet: user, item, timestamp.

    Example: re4 histories export --bundles bundles --out histories.parquet
    """
    from re4.common.files import replacing
    from re4.histories.event_parts import event_table
    from re4.serving.histories.event_log import LoggedEvent

    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: the name must end in .parquet")
    store = _store(settings, bundles)
    events = [
        LoggedEvent(user_id, event.item, event.time_ms) for user_id, own in store.users() for event in own
    ]
    store.close()
    with replacing(out) as file:
        event_table(events).write_parquet(file)
    console.print_line(f"{len(events):,} events are in {out}")


@with_options(HistorySettings, "Store")
def rotate(bundles: Bundles = None, **settings: Any) -> None:
    """Write the recorded events that wait to parts of the event log, and remove expired users.

    A running server does this by itself every --event-part-s seconds. Run it before a nightly training.

    Example: re4 histories rotate --bundles bundles
    """
    from re4.histories.event_parts import rotate as rotate_log

    store = _store(settings, bundles)
    folder = construct(HistorySettings, settings).parts_folder(bundles)
    if folder is None or store.event_log is None:
        raise UsageError("which event log? Give --bundles, --histories or --event-log")
    num_entries = rotate_log(store.event_log, folder)
    num_expired = store.remove_expired(int(time() * 1e3))
    store.close()
    expired = f"; {num_expired:,} expired users were removed" if num_expired else ""
    console.print_line(f"{num_entries:,} calls were written to {folder}{expired}")


@with_options(HistorySettings, "Store")
def erase(bundles: Bundles = None, **settings: Any) -> None:
    """Rewrite the parts of the event log without the events of forgotten users.

    `re4 data prepare` leaves these events out in any case. This removes them from the disk.

    Example: re4 histories erase --bundles bundles
    """
    from re4.histories.event_parts import erase as erase_events

    folder = construct(HistorySettings, settings).parts_folder(bundles)
    if folder is None:
        raise UsageError("which event log? Give --bundles, --histories or --event-log")
    num_events, num_parts = erase_events(folder)
    console.print_line(
        f"{num_events:,} events of forgotten users were removed from {num_parts:,} parts of {folder}"
    )


def _store(settings: dict[str, Any], bundles: Path | None) -> "LmdbStore | RedisStore":
    from re4.serving.histories.settings import open_store

    store: Any = open_store(construct(HistorySettings, settings), bundles)
    if store is None:
        raise UsageError("which store? Give --bundles DIR for the one beside it, or --histories")
    return store  # type: ignore[no-any-return]


def _users_of(dataset: "Dataset", max_events: int, now_ms: int) -> Iterator[list["Event"]]:
    """Yield the newest events of each user of a data set."""
    from re4.serving.histories.store import Event, event_mark

    item_ids = dataset.items()["item_id"].to_list()
    for split in dataset.info.splits:
        sequences = dataset.split(split)
        for place, user_id in enumerate(dataset.users(split).to_list()):
            end = int(sequences.offsets_U1[place + 1])
            start = max(int(sequences.offsets_U1[place]), end - max_events)
            rows = sequences.items_E[start:end].tolist()
            first = end - int(sequences.offsets_U1[place]) - len(rows)
            yield [
                Event(
                    str(user_id),
                    now_ms - (len(rows) - number),
                    event_mark(f"{dataset.info.name}:{first + number}", item_ids[row]),
                    item_ids[row],
                )
                for number, row in enumerate(rows)
            ]
