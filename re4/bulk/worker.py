"""A worker process of a bulk job: answers the parts whose numbers come from the job's process.

It ends with the job's process, whatever ends that one: a part is written whole or not at all.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

from re4.bulk.users import Users
from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.live_items.records import Record
from re4.common.errors import Re4Error
from re4.serving.client.values import RetrieveOptions
from re4.serving.histories.settings import HistorySettings
from re4.serving.settings import Fallback

PART_FORMAT: Final = "part-{:05d}.parquet"
BATCH_USERS: Final = 256
"""Users of a run of the encoder and a search. At 10^5 items a user takes a tenth less CPU time than in
batches of 64, which a server has for its latency."""


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """What a worker needs to know at its start."""

    version: Path
    """Folder of a version whose every byte was verified."""
    hidden: HiddenIds
    changes: Sequence[Record]
    """Changes of live items."""
    users: Users
    histories: HistorySettings | None
    """The store of the events before those of the users; None for none."""
    num_candidates: int
    options: RetrieveOptions
    merge_policy: str
    fallback: Fallback
    part_users: int
    """Users in a part."""
    parts: Path
    """Folder of the finished parts."""


class PartDone(NamedTuple):
    """A finished part."""

    number: int
    num_users: int
    num_errors: int


def work(connection: Connection, start: WorkerStart) -> None:
    """Answer parts until the connection ends, and send a `PartDone` for each, or the error that ends it."""
    numbers: SimpleQueue[int] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, numbers), daemon=True).start()
    try:
        _answer_parts(connection, start, numbers)
    except Re4Error as error:
        connection.send(error)
    except OSError as error:
        connection.send(Re4Error(f"{start.parts}: cannot be written: {error}"))


def _receive(connection: Connection, numbers: "SimpleQueue[int]") -> None:
    try:
        while True:
            numbers.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)


def _answer_parts(connection: Connection, start: WorkerStart, numbers: "SimpleQueue[int]") -> None:
    writer = PartWriter(start)
    while True:
        connection.send(writer.write(numbers.get()))


class PartWriter:
    """Answers parts by an opened version."""

    def __init__(self, start: WorkerStart) -> None:
        """Open the version and the store.

        Raises:
            BundleError: The version cannot be used.
            HistoryStoreError: The store cannot be used.
        """
        # Imported here, after the message that says what to do: the job's process needs none of it.
        from re4.bundle.verify import read_manifest
        from re4.retriever import UNLIMITED
        from re4.serving.api.validation import check_retrieve
        from re4.serving.client.values import retrieve_request
        from re4.serving.histories.settings import open_store
        from re4.serving.host.threads import limit_garbage_collection, limit_openmp_threads
        from re4.serving.settings import ServerSettings
        from re4.serving.versions.snapshot import load_snapshot

        limit_openmp_threads()
        self._start = start
        settings = ServerSettings(limits=UNLIMITED, merge_policy=start.merge_policy)
        snapshot = load_snapshot(
            start.version, read_manifest(start.version), max_batch_size=BATCH_USERS
        ).with_changes(start.hidden, start.changes)
        self._store = None if start.histories is None else open_store(start.histories, None)
        self._request = check_retrieve(
            retrieve_request((), start.num_candidates, (), start.options), snapshot, settings
        )
        limit_garbage_collection()

    def write(self, number: int) -> PartDone:
        """Answer the users of a part, and write it.

        Raises:
            DataError: The users cannot be read, or have ids of another kind.
            HistoryStoreError: The store cannot be used.
            OSError: The part cannot be written.
        """
        from re4.bulk.parts import answer_part
        from re4.common.files import replacing

        start = self._start
        first = number * start.part_users
        users = start.users.read(first, first + start.part_users)
        table = answer_part(users, self._request, self._store, start.fallback, BATCH_USERS)
        with replacing(start.parts / PART_FORMAT.format(number)) as part:
            table.write_parquet(part, compression="snappy", statistics=False)
        return PartDone(number, len(table), len(table) - table["error"].null_count())
