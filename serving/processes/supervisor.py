"""The parent of a server: holds the port, keeps the workers running, has new versions checked.

It answers no call itself and loads no FAISS, no ONNX Runtime and no gRPC, so that whatever kills a worker or
a check leaves it standing, with the last good version for the next worker.
"""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final

from re4.bundle.publishing.version_lease import VersionLease
from re4.common.errors import ServerError
from re4.serving.host.addresses import Address, hold_port, parse_address
from re4.serving.host.backoff import Backoff
from re4.serving.host.cgroups import usable_cores
from re4.serving.observability.logs import log_to_stderr
from re4.serving.observability.metrics import SupervisorMetrics
from re4.serving.observability.metrics_page import metrics_page
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import Announce, Failed, Hide, Load, Refuse, Start
from re4.serving.processes.recall_monitor import RecallMonitor
from re4.serving.processes.worker_process import WorkerProcess
from re4.serving.settings import ServerSettings
from re4.serving.versions.hidden_watcher import HiddenWatcher, NowHidden
from re4.serving.versions.memory_check import require_memory
from re4.serving.versions.version_check import check_version
from re4.serving.versions.watcher import GoLive, Watcher

_KILL_AFTER_S: Final = 5.0
"""Beyond the grace: how long a worker may take to end before it is killed."""

_log = logging.getLogger(__name__)


def run_server(
    bundles: Path, address: Address, settings: ServerSettings, metrics_address: Address | None = None
) -> None:
    """Serve the live version of a bundle directory until SIGTERM or SIGINT; then finish what is in flight.

    Args:
        bundles: The bundle directory, whose `CURRENT` is followed.
        address: Where to listen; port 0 lets the system choose.
        settings: How.
        metrics_address: Where to serve the metrics page; None for nowhere.

    Raises:
        BundleError: the first version cannot be served.
        ServerError: the address cannot be listened on, or a worker does not start.
    """
    log_to_stderr("server", settings.observation.log_format)
    asyncio.run(_Supervisor(bundles, settings, metrics_address).run(address))


class _Supervisor:
    def __init__(self, bundles: Path, settings: ServerSettings, metrics_address: Address | None) -> None:
        self._settings = settings
        self._metrics_address = metrics_address
        self._workers: dict[int, WorkerProcess] = {}
        self._facts = SupervisorMetrics(workers=self._workers, certificate=settings.access.tls_certificate)
        self._recall = RecallMonitor(settings.recall_cpu_share, self._facts.recall)
        self._worker_environment: Mapping[str, str] = {}
        self._bundles = bundles
        self._hidden = HiddenWatcher(bundles)
        self._watcher = Watcher(bundles, self._check)
        self._live: Path | None = None
        self._lease: VersionLease | None = None
        """On what is live, for the next worker's sake."""
        self._refused: Refuse | None = None

    async def run(self, address: Address) -> None:
        serving = asyncio.create_task(self._serve(address))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_once, serving)
        try:
            await serving
        except asyncio.CancelledError:
            pass
        finally:
            await self._recall.stop()
            patience_s = self._settings.grace_s + _KILL_AFTER_S
            await asyncio.gather(*(worker.stop(patience_s) for worker in self._workers.values()))
        _log.info("stopped")

    def _stop_once(self, serving: "asyncio.Task[None]") -> None:
        if not serving.cancelling():
            _log.info("stopping: calls in flight have %g seconds to finish", self._settings.grace_s)
            serving.cancel()

    async def _serve(self, address: Address) -> None:
        self._say_choices()
        with (
            hold_port(address) as bound,
            self._health_port() as settings,
            self._metrics_page(),
            TemporaryDirectory(prefix="re4-workers-") as folder,
        ):
            hidden = self._told(self._hidden.first())
            orders = [
                Start(
                    number=number,
                    host=bound.host,
                    port=bound.port,
                    settings=settings.to_json(),
                    path=None,
                    folder=folder,
                    hidden=asdict(hidden),
                )
                for number in range(1, self._settings.num_processes + 1)
            ]
            # The version is checked while the workers start: whoever asks by then is told NOT_SERVING.
            await _all_or_first_failure([self._open(orders, bound), self._check_first()])
            assert self._live is not None
            first = self._live
            await _all_or_first_failure(worker.load_first(first) for worker in self._workers.values())
            # Not before all are warm: a probe that reaches one stands for callers who reach another.
            for worker in self._workers.values():
                worker.send(Announce())
            _log.info("threads of a worker: %s", _in_words(self._workers[1].thread_pools))
            if settings.access.health_address is not None:
                _log.info("health on %s", settings.access.health_address)
            _log.info("listening on %s", bound)
            await _all_or_first_failure(
                [*(self._keep(order) for order in orders), self._follow(), self._follow_hidden()]
            )

    @contextmanager
    def _health_port(self) -> Iterator[ServerSettings]:
        """Hold the port of the health service; the settings with its number."""
        access = self._settings.access
        if access.health_address is None:
            yield self._settings
            return
        with hold_port(parse_address(access.health_address)) as bound:
            yield replace(self._settings, access=replace(access, health_address=str(bound)))

    @contextmanager
    def _metrics_page(self) -> Iterator[None]:
        if self._metrics_address is None:
            yield
            return
        with metrics_page(self._metrics_address, self._facts) as (where, environment):
            self._worker_environment = environment
            _log.info("metrics on http://%s/metrics", where)
            yield

    async def _open(self, orders: Sequence[Start], bound: Address) -> None:
        await _all_or_first_failure(self._start(order) for order in orders)
        _log.info("port %d is open, NOT_SERVING until the first version is warm", bound.port)

    async def _check_first(self) -> None:
        self._set_live(await self._watcher.first())
        self._facts.num_loads_ok += 1

    def _set_live(self, path: Path) -> None:
        before, self._lease = self._lease, VersionLease(path)
        if before is not None:
            before.release()
        self._live = self._facts.live = path

    async def _check(self, path: Path) -> None:
        if self._settings.memory_check and self._live is not None:
            require_memory(path, num_processes=self._settings.num_processes)
        await check_version(path, settings=self._settings)

    async def _start(self, order: Start) -> None:
        self._workers[order.number] = await WorkerProcess.start(order, self._worker_environment)

    async def _keep(self, order: Start) -> None:
        """Hear a worker out; start another where it ends."""
        backoff = Backoff()
        while True:
            began_s = monotonic()
            worker = self._workers[order.number]
            async for report in worker.reports():
                if isinstance(report, Failed):
                    self._facts.num_loads_failed += 1
                    _log.error("worker %d keeps its version: %s", order.number, report.failure)
                elif isinstance(report, RecallSample):
                    self._recall.offer(report)
            _log.error(
                "worker %d (pid %d) ended with %s; starting another",
                order.number,
                worker.pid,
                await worker.wait(),
            )
            await self._start_again(order, backoff, lived_s=monotonic() - began_s)

    async def _start_again(self, order: Start, backoff: Backoff, *, lived_s: float) -> None:
        self._facts.num_worker_restarts += 1
        while True:
            delay_s = backoff.delay_s(lived_s)
            if delay_s:
                _log.error("worker %d: waiting %g seconds before the next try", order.number, delay_s)
                await asyncio.sleep(delay_s)
            try:
                await self._start(
                    replace(order, path=str(self._live), hidden=asdict(self._told(self._hidden.now)))
                )
                break
            except (ServerError, OSError) as error:  # OSError: the system gives no further process
                _log.error("%s", error)
                lived_s = 0.0
        # What became live, was refused or was hidden while it started.
        self._workers[order.number].send(self._told(self._hidden.now))
        self._workers[order.number].send(Load(path=str(self._live)))
        if self._refused is not None:
            self._workers[order.number].send(self._refused)

    async def _follow(self) -> None:
        """Look at `CURRENT` again and again; a new version is checked once and then goes to every worker."""
        while True:
            await asyncio.sleep(self._settings.poll_interval_s)
            change = await self._watcher.poll()
            if change is None:
                continue
            order: Load | Refuse
            if isinstance(change, GoLive):
                self._set_live(change.path)
                self._refused = None
                self._facts.num_loads_ok += 1
                order = Load(path=str(change.path))
                _log.info("version %s passed its check: going live", change.path.name)
            else:
                self._facts.num_loads_failed += 1
                order = self._refused = Refuse(version=change.version, failure=change.failure)
                _log.error("version %s refused, the old one stays live: %s", change.version, change.failure)
            for worker in self._workers.values():
                worker.send(order)

    async def _follow_hidden(self) -> None:
        """Look at the list of hidden items again and again; checking a version does not hold this up."""
        while True:
            await asyncio.sleep(self._settings.poll_interval_s)
            change = self._hidden.poll()
            if change is None:
                continue
            if change.failure:
                self._facts.num_hidden_failed += 1
                _log.error("hidden items: the newest list is not used, %s", change.failure)
            else:
                _log.info("hidden items: %d from now on", len(change.hidden.ids))
            order = self._told(change)
            for worker in self._workers.values():
                worker.send(order)

    def _told(self, now: NowHidden) -> Hide:
        """What workers are told; the metrics know it from then on."""
        self._facts.num_hidden = len(now.hidden.ids)
        return Hide(id_kind=now.hidden.id_kind, ids=list(now.hidden.ids), failure=now.failure)

    def _say_choices(self) -> None:
        settings = self._settings
        _log.info("bundles in %s, CURRENT read every %g seconds", self._bundles, settings.poll_interval_s)
        _log.info(
            "%d worker process(es) with one compute lane each, %d core(s) are theirs to use; pools of ONNX "
            "Runtime, OpenMP and BLAS have one thread, because lanes that share cores would wait for each "
            "other",
            settings.num_processes,
            usable_cores(),
        )
        by_source: dict[str, list[str]] = {}
        for name, value, source in settings.effective():
            by_source.setdefault(source, []).append(f"{name}={value}")
        for source, pairs in by_source.items():
            _log.info("settings from %s: %s", source, ", ".join(pairs))


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


async def _all_or_first_failure(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them; where one raises, stop the others and raise that."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(coroutine)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
