"""The commands of the supervisor, carried out in a worker process (`messages.py` has the messages)."""

import asyncio
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn

from re4.bundle.hidden_ids import HiddenIds
from re4.common.errors import Re4Error
from re4.serving.api.server import RetrievalServer
from re4.serving.auth.certificates import Certificates
from re4.serving.host.addresses import Address
from re4.serving.host.threads import limit_garbage_collection, thread_pools
from re4.serving.observability.logs import log_to_stderr
from re4.serving.observability.metrics import count_as_worker
from re4.serving.processes.messages import (
    MAX_LINE_BYTES,
    CommandFailed,
    Heartbeat,
    HideItems,
    LoadVersion,
    PortOpened,
    ReadFiles,
    RecordRefusal,
    SetCanary,
    SetServing,
    ShowRecall,
    StartWorker,
    VersionLoaded,
    from_line,
)
from re4.serving.processes.report_stream import HEARTBEATS_PER_TIMEOUT, ReportStream
from re4.serving.retrieval.devices.backend import open_backend
from re4.serving.settings import ServerSettings
from re4.serving.versions.canary import LoadedCanary, VersionRouter
from re4.serving.versions.changed_files import FileMarks, require_unchanged
from re4.serving.versions.live_items_follower import FollowedItems, LiveItemsFollower
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot, load_snapshot

_log = logging.getLogger(__name__)


class Worker:
    """Carries out the supervisor's commands in this process."""

    def __init__(self, start: StartWorker, reports: ReportStream) -> None:
        self._start = start
        self._settings = ServerSettings.from_json(start.settings)
        self._reports = reports
        first = HideItems(**start.hidden)
        self._live = LiveVersion(hidden=_hidden_ids(first), hidden_failure=first.failure)
        self._router = VersionRouter()
        self._canary: LiveItemsFollower | None = None
        self._backend = open_backend(self._settings.device)
        count_as_worker(start.number)
        certificates = start.certificates
        self._server = RetrievalServer(
            self._live,
            self._settings,
            Path(start.folder),
            worker_thread=self._backend.worker_thread,
            router=self._router,
            on_sample=None if self._settings.metrics_address is None else reports.send,
            certificates=None if certificates is None else Certificates.from_message(certificates),
        )
        self._items = LiveItemsFollower(
            self._live,
            poll_interval_s=self._settings.live_poll_interval_s,
            on_lag=self._server.metrics.live_items_lag,
            on_changed=self._server.metrics.live_items,
        )
        self._following_canary: asyncio.Task[NoReturn] | None = None
        reports.on_dropped_sample = self._server.metrics.dropped_sample

    async def run(self, commands: asyncio.StreamReader, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or the commands end.

        Raises:
            Re4Error: the first version cannot be loaded, or the address not listened on.
        """
        # A replacement opens the port when it is warm: until then the other workers get the connections. At
        # the server's start there are no others, and callers learn at once that it is not ready yet.
        if self._start.path is not None:
            self._items.swap(*await self._load(self._start.path, self._start.files))
        await self._server.start(Address(host=self._start.host, port=self._start.port))
        try:
            if self._start.path is None:
                self._reports.send(PortOpened())
            else:
                await self._server.set_serving()
                self._report_loaded()
            beating = asyncio.create_task(self._beat())
            following = asyncio.create_task(self._follow(commands))
            following_items = asyncio.create_task(self._items.follow())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (beating, following, following_items, stopping):
                task.cancel()
        finally:
            self._items.stop()
            self._end_canary()
            await self._server.stop()

    async def _beat(self) -> NoReturn:
        while True:
            await self._server.wait_for_worker_thread()
            self._reports.send(Heartbeat())
            await asyncio.sleep(self._settings.worker_timeout_s / HEARTBEATS_PER_TIMEOUT)

    async def _follow(self, commands: asyncio.StreamReader) -> None:
        """Carry out commands until their end, or until one cannot be read: the next worker gets them all."""
        while True:
            try:
                line = await commands.readline()  # ValueError where it is longer than the limit
                command = from_line(line) if line else None
            except ValueError as error:
                _log.error("a command cannot be read, so this worker ends: %s", error)
                return
            match command:
                case None:
                    return
                case LoadVersion():
                    await self._go_live(command)
                case HideItems():
                    await self._hide(command)
                case SetCanary():
                    await self._set_canary(command)
                case SetServing():
                    await self._server.set_serving()
                case ReadFiles():
                    self._server.read_files()
                    self._live.items_written.set()
                case RecordRefusal():
                    self._live.refuse(command.version, command.failure)
                case ShowRecall():
                    self._router.recalls[command.version] = command.num_samples, command.recall

    async def _go_live(self, command: LoadVersion) -> None:
        current = self._live.snapshot
        try:
            if current is not None and command.path == str(current.path):
                self._live.swap(current)
            else:
                self._items.swap(*await self._load(command.path, command.files))
                self._report_loaded()
        except Exception as error:  # the live version stays live after any error
            _log.exception("%s cannot be loaded", command.path)
            self._live.refuse(Path(command.path).name, str(error))
            self._reports.send(CommandFailed(failure=str(error)))

    async def _hide(self, command: HideItems) -> None:
        hidden, snapshot = _hidden_ids(command), self._live.snapshot
        try:
            if snapshot is not None and hidden != self._live.hidden:
                snapshot = await asyncio.to_thread(snapshot.with_hidden, hidden)
                snapshot = self._items.hide(hidden, snapshot)
            self._live.hide(hidden, snapshot, command.failure)
            await self._hide_in_canary(hidden)
        except Exception as error:  # the hidden items stay hidden after any error
            _log.exception("the list of hidden items cannot be used")
            self._live.hide(self._live.hidden, self._live.snapshot, str(error))
            self._reports.send(CommandFailed(failure=f"hidden items: {error}"))

    async def _hide_in_canary(self, hidden: HiddenIds) -> None:
        canary = self._router.canary
        if canary is None or self._canary is None:
            return
        snapshot = await asyncio.to_thread(canary.version.current().with_hidden, hidden)
        canary.version.hide(hidden, self._canary.hide(hidden, snapshot), "")

    async def _set_canary(self, command: SetCanary) -> None:
        """Load the canary, or end it; any failure ends it, so that the live version answers all calls."""
        canary = self._router.canary
        self._router.failure = command.failure
        if canary is not None and command.path == str(canary.version.current().path):
            self._router.canary = replace(canary, share=command.share, is_shadow=command.is_shadow)
            return
        self._end_canary()
        if command.path is None:
            return
        version = LiveVersion(hidden=self._live.hidden)
        items = LiveItemsFollower(
            version,
            poll_interval_s=self._settings.live_poll_interval_s,
            on_lag=lambda _: None,
            on_changed=lambda _: None,
        )
        try:
            items.swap(*await self._load(command.path, command.files, items))
        except Exception as error:
            _log.exception("the canary %s cannot be loaded", command.path)
            self._router.failure = str(error)
            self._reports.send(CommandFailed(failure=f"canary: {error}"))
            return
        self._canary = items
        self._following_canary = asyncio.create_task(items.follow())
        self._router.canary = LoadedCanary(version=version, share=command.share, is_shadow=command.is_shadow)
        _log.info("the canary %s is loaded", Path(command.path).name)

    def _end_canary(self) -> None:
        self._router.canary = None
        if self._canary is not None:
            self._canary.stop()
        if self._following_canary is not None:
            self._following_canary.cancel()
        self._canary = self._following_canary = None

    async def _load(
        self, folder: str, files: FileMarks, items: LiveItemsFollower | None = None
    ) -> tuple[Snapshot, FollowedItems]:
        """Load a version in a thread: the event loop goes on answering calls. Then read its live items.

        Args:
            folder: Of the version.
            files: Its files, when it was checked.
            items: Follows the live items of a canary; None for the live version.
        """
        path, settings, hidden = Path(folder), self._settings, self._live.hidden

        def load() -> Snapshot:
            snapshot = load_snapshot(
                path,
                require_unchanged(path, files, maps_vectors=settings.maps_vectors),
                max_batch_size=settings.max_batch_size,
                backend=self._backend,
                index_timeout_s=settings.index_timeout_ms / 1e3,
                maps_vectors=settings.maps_vectors,
            )
            return snapshot.with_hidden(hidden)

        snapshot = replace(await asyncio.to_thread(load), is_canary=items is not None)
        return snapshot, await (items or self._items).prepare(snapshot, hidden)

    def _report_loaded(self) -> None:
        limit_garbage_collection()
        snapshot = self._live.current()
        manifest = snapshot.manifest
        if snapshot.are_vectors_remote:
            _log.info("item vectors are fetched from Milvus, so recall is not measured: item_vectors = index")
        _log.info(
            "serving %s: %s encoder, %s index of %d items, both on %s",
            manifest.version,
            manifest.model.name,
            manifest.index.kind,
            manifest.items.num_items,
            self._backend.name,
        )
        self._reports.send(VersionLoaded(version=manifest.version, thread_pools=thread_pools()))


def _hidden_ids(command: HideItems) -> HiddenIds:
    return HiddenIds(id_kind=command.id_kind, ids=tuple(command.ids))


async def run_worker(pipe: IO[bytes]) -> int:
    """Follow the commands on stdin until they end or SIGTERM comes.

    Args:
        pipe: Takes the reports.

    Returns:
        The exit code.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Ctrl-C and the end of a terminal reach all its processes; the supervisor decides what follows.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)
    commands = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    start = from_line(await commands.readline())
    if not isinstance(start, StartWorker):
        raise ValueError(f"the first command must be StartWorker, not {start!r}")
    log_to_stderr(f"worker {start.number}", ServerSettings.from_json(start.settings).observation.log_format)
    reports = await ReportStream.open(pipe)
    try:
        await Worker(start, reports).run(commands, stop)
    except Re4Error as error:
        reports.send(CommandFailed(failure=str(error)))
        return 1
    finally:
        await reports.close()
    return 0
