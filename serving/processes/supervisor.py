"""The parent of a server: holds the port, keeps the workers running, has new versions checked.

It answers no call and loads no FAISS, no ONNX Runtime and no gRPC. Whatever kills a worker or a check leaves
it running, with the last good version for the next worker.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

from re4.bundle.publishing.version_lease import VersionLease
from re4.common.errors import ServerError
from re4.serving.auth.certificates import CertificateReloader
from re4.serving.host.addresses import Address, parse_address, reserve_port
from re4.serving.host.backoff import Backoff
from re4.serving.host.cgroups import usable_cores
from re4.serving.host.file_poller import poll_forever
from re4.serving.host.temporary_folders import temporary_folder
from re4.serving.observability.logs import log_to_stderr
from re4.serving.observability.metrics import SupervisorMetrics
from re4.serving.observability.metrics_page import metrics_page
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import (
    Command,
    CommandFailed,
    HideItems,
    LoadVersion,
    ReadFiles,
    RecordRefusal,
    SetCanary,
    SetServing,
    ShowRecall,
    StartWorker,
    VersionLoaded,
)
from re4.serving.processes.recall_monitor import RecallMonitor
from re4.serving.processes.report_stream import HEARTBEATS_PER_TIMEOUT
from re4.serving.processes.rotation import EventLogRotation
from re4.serving.processes.worker_handle import Unreadable, WorkerProcess
from re4.serving.settings import ServerSettings
from re4.serving.transports.choice import choose_transport
from re4.serving.versions.canary_watcher import CanaryWatcher
from re4.serving.versions.changed_files import FileMarks, file_marks
from re4.serving.versions.memory_check import require_memory
from re4.serving.versions.version_check import check_version
from re4.serving.versions.watcher import HiddenWatcher, VersionWatcher

_KILL_AFTER_S: Final = 5.0
"""Beyond the grace: how long a worker may take to end before it is killed."""

_LONGEST_RELOAD_S: Final = 300.0
"""Between two attempts of a worker to load the live version."""

_log = logging.getLogger(__name__)


def run_server(
    bundles: Path, address: Address, settings: ServerSettings, metrics_address: Address | None = None
) -> None:
    """Serve the live version of a bundle directory until SIGTERM or SIGINT; then finish the calls in flight.

    Args:
        bundles: The bundle directory, whose `CURRENT` is followed.
        address: Where to listen; port 0 lets the system choose.
        settings: Every choice of `re4 serve`.
        metrics_address: Where to serve the metrics page; None for nowhere.

    Raises:
        BundleError: the first version cannot be served.
        ServerError: the address cannot be listened on, or a worker does not start.
        UsageError: the transport that the settings demand cannot be used.
    """
    log_to_stderr("server", settings.observation.log_format)
    transport, reason = choose_transport(settings)
    _log.info("transport %s: %s", transport, reason)
    settings = replace(settings, transport=transport)
    asyncio.run(_Supervisor(bundles, settings, metrics_address).run(address))


class _Supervisor:
    """The methods stand in the order in which they run: start, supervise, follow."""

    def __init__(self, bundles: Path, settings: ServerSettings, metrics_address: Address | None) -> None:
        self._bundles = bundles
        self._settings = settings
        self._metrics_address = metrics_address
        self._workers: dict[int, WorkerProcess] = {}
        self._worker_environment: Mapping[str, str] = {}
        self._metrics = SupervisorMetrics(workers=self._workers, certificate=settings.access.tls_certificate)
        self._recall = RecallMonitor(settings.recall_cpu_share, self._show_recall)
        self._rotation = EventLogRotation(settings.history, bundles, self._metrics)
        self._hidden = HiddenWatcher(bundles, self._hide)
        files = settings.access.certificate_files
        self._certificates = None if files is None else CertificateReloader(files)
        """For workers that start while the files cannot be used."""
        self._versions = VersionWatcher(
            bundles,
            self._check,
            on_live=self._go_live,
            on_refused=self._record_refusal,
            poll_interval_s=settings.poll_interval_s,
        )
        self._canary = CanaryWatcher(
            bundles, self._check_canary, self._set_canary, poll_interval_s=settings.poll_interval_s
        )
        self._canary_files: FileMarks = {}
        self._canary_lease: VersionLease | None = None
        self._checked: dict[Path, FileMarks] = {}
        """The version that passed its check last."""
        self._live: Path | None = None
        self._live_files: FileMarks = {}
        self._lease: VersionLease | None = None
        """On the live version, for the next worker."""
        self._refusal: RecordRefusal | None = None

    async def run(self, address: Address) -> None:
        serving = asyncio.create_task(self._serve(address))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_once, serving)
        loop.add_signal_handler(signal.SIGHUP, self._read_files)
        try:
            with suppress(asyncio.CancelledError):
                await serving
        finally:
            await self._recall.stop()
            patience_s = self._settings.grace_s + _KILL_AFTER_S
            await asyncio.gather(*(worker.stop(patience_s) for worker in self._workers.values()))
        _log.info("stopped")

    def _stop_once(self, serving: "asyncio.Task[None]") -> None:
        if not serving.cancelling():
            _log.info("stopping: calls in flight have %g seconds to finish", self._settings.grace_s)
            serving.cancel()

    def _read_files(self) -> None:
        """Read every followed file again now, also one that has not changed since it was refused."""
        _log.info("SIGHUP: reading CURRENT, HIDDEN, CANARY, LIVE, tokens and certificates again")
        for watcher in (self._versions, self._hidden, self._canary, self._certificates):
            if watcher is not None:
                watcher.poller.read_now()
        self._send_to_all(ReadFiles())

    async def _serve(self, address: Address) -> None:
        self._log_settings()
        with (
            reserve_port(address) as bound,
            self._reserved_ports() as settings,
            self._metrics_page(),
            temporary_folder("re4-serve-workers-") as folder,
        ):
            self._hidden.first()
            starts = [
                StartWorker(
                    number=number,
                    host=bound.host,
                    port=bound.port,
                    settings=settings.to_json(),
                    path=None,
                    files={},
                    folder=str(folder),
                    hidden=vars(self._hide_command()),
                    certificates=self._last_good_certificates(),
                )
                for number in range(1, self._settings.num_processes + 1)
            ]
            await self._start_all(starts, bound)
            if settings.http_address is not None:
                _log.info("JSON over HTTP on %s", settings.http_address)
            if settings.access.health_address is not None:
                _log.info("health on %s", settings.access.health_address)
            _log.info("listening on %s", bound)
            interval_s = self._settings.poll_interval_s
            await _all_or_first_failure(
                [
                    *(self._supervise(start) for start in starts),
                    poll_forever(interval_s, self._versions.poll, self._versions.poller.wake),
                    # Apart: the check of a version must not delay the hiding of items.
                    poll_forever(interval_s, self._hidden.poll, self._hidden.poller.wake),
                    poll_forever(interval_s, self._canary.poll, self._canary.poller.wake),
                    poll_forever(self._settings.history.event_part_s, self._rotation.poll),
                    *self._follow_certificates(),
                ]
            )

    @contextmanager
    def _reserved_ports(self) -> Iterator[ServerSettings]:
        """Reserve the ports of HTTP and of the health service, and yield the settings with their numbers."""
        settings, access = self._settings, self._settings.access
        with ExitStack() as reserved:
            if settings.http_address is not None:
                bound = reserved.enter_context(reserve_port(parse_address(settings.http_address)))
                settings = replace(settings, http_address=str(bound))
            if access.health_address is not None:
                bound = reserved.enter_context(reserve_port(parse_address(access.health_address)))
                settings = replace(settings, access=replace(access, health_address=str(bound)))
            yield settings

    @contextmanager
    def _metrics_page(self) -> Iterator[None]:
        if self._metrics_address is None:
            yield
            return
        num_workers = self._settings.num_processes
        page = metrics_page(self._metrics_address, self._metrics, num_workers=num_workers)
        with page as (where, environment):
            self._worker_environment = environment
            _log.info("metrics on http://%s/metrics", where)
            yield

    async def _start_all(self, starts: Sequence[StartWorker], bound: Address) -> None:
        """Open the port in every worker while the first version is checked, then load the version."""
        await _all_or_first_failure([self._open_port(starts, bound), self._check_first()])
        await _all_or_first_failure(self._load_first(number) for number in self._workers)
        # Not before all are warm: the health of one worker stands for callers of another.
        self._send_to_all(SetServing())
        pools = self._workers[1].thread_pools
        _log.info("threads of a worker: %s", ", ".join(f"{name} {count}" for name, count in pools.items()))

    async def _open_port(self, starts: Sequence[StartWorker], bound: Address) -> None:
        await _all_or_first_failure(self._start(start) for start in starts)
        _log.info("port %d is open, NOT_SERVING until the first version is warm", bound.port)

    async def _check_first(self) -> None:
        self._set_live(await self._versions.first())

    async def _start(self, start: StartWorker) -> None:
        async with self._ready_in_time(start.number):
            self._workers[start.number] = await WorkerProcess.start(
                start, self._worker_environment, end_within_s=self._settings.grace_s + _KILL_AFTER_S
            )

    async def _load_first(self, number: int) -> None:
        async with self._ready_in_time(number):
            await self._workers[number].load_first(self._load_command())

    @asynccontextmanager
    async def _ready_in_time(self, number: int) -> AsyncIterator[None]:
        """Limit a worker's start or first load to the time of a check, which loads the version too."""
        timeout_s = self._settings.check_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise ServerError(
                f"worker {number} was not ready after {timeout_s:g} seconds (--check-timeout-s)"
            ) from None

    async def _supervise(self, start: StartWorker) -> None:
        """Read a worker's reports until it ends, then start the next one, again and again."""
        backoff = Backoff()
        while True:
            began_s = monotonic()
            worker = self._workers[start.number]
            reason = await self._end_of(worker, start.number)
            _log.error("worker %d (pid %d) ended with %s; starting another", start.number, worker.pid, reason)
            self._metrics.num_worker_restarts += 1
            await self._restart(start, backoff, uptime_s=monotonic() - began_s)

    async def _end_of(self, worker: WorkerProcess, number: int) -> str:
        """Read a worker's reports until it ends or is killed as unresponsive, and return how it ended."""
        timeout_s = self._settings.worker_timeout_s
        reading = asyncio.create_task(self._read_reports(worker, number))
        watching = asyncio.create_task(
            worker.wait_until_unresponsive(
                interval_s=timeout_s / HEARTBEATS_PER_TIMEOUT, num_intervals=HEARTBEATS_PER_TIMEOUT
            )
        )
        try:
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                return await worker.wait()
            _log.error(
                "worker %d (pid %d) sent no heartbeat for %g seconds: killing it",
                *(number, worker.pid, timeout_s),
            )
            self._metrics.num_unresponsive_workers += 1
            return await worker.kill()
        finally:
            reading.cancel()
            watching.cancel()

    async def _read_reports(self, worker: WorkerProcess, number: int) -> None:
        retry = Backoff(first_delay_s=1.0, longest_delay_s=_LONGEST_RELOAD_S)
        async for report in worker.reports():
            match report:
                case VersionLoaded():
                    retry.reset()
                case CommandFailed():
                    self._metrics.num_loads_failed += 1
                    _log.error("worker %d keeps its version: %s", number, report.failure)
                    # The version passed its check: this worker was short of memory or the like.
                    loop = asyncio.get_running_loop()
                    loop.call_later(retry.delay_s(), self._update, worker)
                case RecallSample():
                    self._recall.offer(report)
                case Unreadable():
                    self._metrics.num_unreadable_reports += 1
                    _log.error("worker %d: unreadable report: %s", number, report.reason)

    def _show_recall(self, version: str, recall: float) -> None:
        """Count the measured recall of an answer, in the metrics and in every worker's `Info`."""
        num_samples, total = self._metrics.observe_recall(version, recall)
        self._send_to_all(ShowRecall(version=version, num_samples=num_samples, recall=total / num_samples))

    async def _restart(self, start: StartWorker, backoff: Backoff, *, uptime_s: float) -> None:
        while True:
            delay_s = backoff.delay_s(uptime_s)
            if delay_s:
                _log.error("worker %d: waiting %g seconds before the next try", start.number, delay_s)
                await asyncio.sleep(delay_s)
            try:
                present = replace(
                    start,
                    **vars(self._load_command()),
                    hidden=vars(self._hide_command()),
                    certificates=self._last_good_certificates(),
                )
                await self._start(present)
                break
            except Exception as error:  # also where the system starts no further process or thread
                _log.error("worker %d does not start: %s", start.number, error)
                uptime_s = 0.0
        self._update(self._workers[start.number])  # all of it may have changed while the worker started

    def _update(self, worker: WorkerProcess) -> None:
        """Send the present state to a worker that may have missed a part of it."""
        worker.send(self._hide_command())
        worker.send(self._load_command())
        worker.send(self._canary_command())
        for version, (num_samples, total) in self._metrics.recalls.items():
            worker.send(ShowRecall(version=version, num_samples=num_samples, recall=total / num_samples))
        if self._refusal is not None:
            worker.send(self._refusal)

    async def _check(self, path: Path) -> None:
        self._checked = {path: await self._files_of_checked(path)}

    async def _check_canary(self, path: Path) -> None:
        self._canary_files = await self._files_of_checked(path)

    async def _files_of_checked(self, path: Path) -> FileMarks:
        """Check a version and return its files as they were before."""
        if self._settings.memory_check and self._live is not None:
            require_memory(path, num_processes=self._settings.num_processes)
        files = file_marks(path)  # before the check: a change during it is then seen by the workers
        await check_version(path, settings=self._settings)
        return files

    def _go_live(self, path: Path) -> None:
        _log.info("version %s passed its check: going live", path.name)
        self._set_live(path)
        self._send_to_all(self._load_command())

    def _set_live(self, path: Path) -> None:
        previous, self._lease = self._lease, VersionLease(path)
        if previous is not None:
            previous.release()
        self._live = self._metrics.live = path
        if path in self._checked:  # otherwise it is live already, and was checked before
            self._live_files = self._checked[path]
        self._refusal = None
        self._metrics.num_loads_ok += 1

    def _record_refusal(self, version: str, failure: str) -> None:
        _log.error("version %s refused, the old one stays live: %s", version, failure)
        self._refusal = RecordRefusal(version=version, failure=failure)
        self._metrics.num_loads_failed += 1
        self._send_to_all(self._refusal)

    def _hide(self) -> None:
        """Send a changed list of hidden items, or the reason why a newer one is not used."""
        if self._hidden.failure:
            self._metrics.num_hidden_failed += 1
            _log.error("hidden items: the newest list is not used, %s", self._hidden.failure)
        else:
            _log.info("hidden items: %d from now on", len(self._hidden.hidden.ids))
        self._send_to_all(self._hide_command())

    def _set_canary(self) -> None:
        """Send a changed canary, or the reason why there is none."""
        canary, previous = self._canary.canary, self._canary_lease
        self._canary_lease = None if canary is None else VersionLease(self._bundles / canary.version)
        if previous is not None:
            previous.release()
        self._metrics.canary = canary
        if canary is None:
            _log.info("there is no canary: the live version answers all calls")
        else:
            how = "is compared on" if canary.is_shadow else "answers"
            _log.info("canary: %s %s %.3g %% of the calls", canary.version, how, 100 * canary.share)
        self._send_to_all(self._canary_command())

    def _canary_command(self) -> SetCanary:
        canary, failure = self._canary.canary, self._canary.failure
        if canary is None:
            return SetCanary(path=None, files={}, share=0.0, is_shadow=False, failure=failure)
        return SetCanary(
            path=str(self._bundles / canary.version),
            files=self._canary_files,
            share=canary.share,
            is_shadow=canary.is_shadow,
            failure=failure,
        )

    def _load_command(self) -> LoadVersion:
        return LoadVersion(path=str(self._live), files=self._live_files)

    def _hide_command(self) -> HideItems:
        hidden = self._hidden.hidden
        self._metrics.num_hidden = len(hidden.ids)
        return HideItems(id_kind=hidden.id_kind, ids=list(hidden.ids), failure=self._hidden.failure)

    def _follow_certificates(self) -> Iterator[Coroutine[Any, Any, None]]:
        if self._certificates is not None:
            poller = self._certificates.poller
            yield poll_forever(self._settings.poll_interval_s, self._certificates.poll, poller.wake)

    def _last_good_certificates(self) -> dict[str, str] | None:
        if self._certificates is None:
            return None
        self._certificates.refresh()
        return self._certificates.current.to_message()

    def _send_to_all(self, command: Command) -> None:
        for worker in self._workers.values():
            worker.send(command)

    def _log_settings(self) -> None:
        settings = self._settings
        _log.info("bundles in %s, CURRENT read every %g seconds", self._bundles, settings.poll_interval_s)
        _log.info(
            "%d worker process(es) with one worker thread each on %d usable core(s); the pools of ONNX "
            "Runtime, OpenMP and BLAS have one thread, because threads that share a core wait for each other",
            settings.num_processes,
            usable_cores(),
        )
        by_source: dict[str, list[str]] = {}
        for name, value, source in settings.effective():
            by_source.setdefault(source, []).append(f"{name}={value}")
        for source, pairs in by_source.items():
            _log.info("settings from %s: %s", source, ", ".join(pairs))


async def _all_or_first_failure(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them; where one raises, stop the others and raise that."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
