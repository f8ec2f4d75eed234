"""The gRPC server of one worker process: service, health, reflection, and a graceful stop."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Final, NoReturn

from grpc_health.v1 import health_pb2

from re4.serving.api.health import HEALTH_NAME, Health
from re4.serving.api.reflection import reflection_methods
from re4.serving.api.service import SERVICE_NAME, CallListener, RetrievalService
from re4.serving.auth.authenticator import Authenticator
from re4.serving.auth.certificates import CertificateReloader, Certificates
from re4.serving.host.addresses import Address, parse_address
from re4.serving.observability.access_log import AccessLog
from re4.serving.observability.metrics import CallMetrics
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.observability.tracing import Tracer, otlp_provider
from re4.serving.settings import AccessLogKind, ServerSettings, TransportName
from re4.serving.transports.choice import choose_transport, open_transport
from re4.serving.transports.transport import Transport
from re4.serving.versions.canary import VersionRouter
from re4.serving.versions.live_version import LiveVersion

_INDEX_POLL_S: Final = 0.2
"""Between two looks at the state of an index on another machine."""
_QUIET_S: Final = 0.2
"""A server that was idle before and after so many seconds has no steady callers."""
_GAP_S: Final = 0.002
"""An idle time between two calls of steady callers, after which gRPC holds no further call."""
_LEAVE_S: Final = 1.0
"""How long a stop waits for each of the two idle times."""


class RetrievalServer:
    """Serves the live version on an address. Belongs to one event loop."""

    def __init__(
        self,
        live: LiveVersion,
        settings: ServerSettings,
        folder: Path | None = None,
        tracer: Tracer | None = None,
        worker_thread: ThreadPoolExecutor | None = None,
        router: VersionRouter | None = None,
        on_sample: Callable[[RecallSample], None] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """Assemble the server; it listens from `start` on.

        Args:
            live: The version that answers.
            settings: Of the server.
            folder: A folder that all workers of the server share; None for a single worker.
            tracer: Makes traces; None for one by the settings, if they have any.
            worker_thread: The only thread that may run the pipeline; None to make one.
            router: Chooses the version of each call; None where the live one answers all.
            on_sample: Takes results whose recall can be measured; None to measure none.
            certificates: Served while the files of certificates cannot be used; None where there are none.

        Raises:
            SecurityError: certificates or tokens cannot be used.
        """
        self._settings = settings
        self.metrics = CallMetrics()
        access = settings.access
        self._authenticator = None if access.tokens is None else Authenticator(access.tokens, folder)
        files = access.certificate_files
        self._certificates = None if files is None else CertificateReloader(files, certificates)
        watched = settings.observation
        self._tracer = tracer
        if tracer is None and watched.trace_endpoint is not None:
            self._tracer = Tracer(otlp_provider(watched.trace_endpoint, watched.trace_fraction))
        listeners: list[CallListener] = [] if self._tracer is None else [self._tracer]
        if watched.access_log is not AccessLogKind.OFF:
            errors_only = watched.access_log is AccessLogKind.ERRORS
            listeners.append(AccessLog(errors_only=errors_only, lines_per_s=watched.access_log_per_s))
        transport, _ = choose_transport(settings)
        self._service = RetrievalService(
            live,
            settings,
            self.metrics,
            self._authenticator,
            listeners,
            has_stages=self._tracer is not None,
            has_batch_transport=transport is TransportName.NATIVE,
            worker_thread=worker_thread,
            router=router,
            on_sample=on_sample,
        )
        self._health = Health((SERVICE_NAME,))
        methods = [*self._service.methods(), *self._health.methods()]
        if settings.reflection:
            methods += reflection_methods((SERVICE_NAME, HEALTH_NAME), self._authenticator)
        self._transport = open_transport(transport, methods, settings.limits, self._certificates)
        self._health_transport: Transport | None = None
        if settings.access.health_address is not None:
            self._health_transport = open_transport(transport, self._health.methods(), settings.limits)
        self._http_transport: Transport | None = None
        if settings.http_address is not None:
            from re4.serving.http.http_transport import HttpTransport

            self._http_transport = HttpTransport(methods, settings.limits, self._certificates)
        self._live = live
        self._is_serving = False
        self._following: asyncio.Task[None] | None = None
        self._watching_index: asyncio.Task[NoReturn] | None = None

    async def start(self, address: Address) -> Address:
        """Listen; the health status is NOT_SERVING until `set_serving`.

        Returns:
            The address; its port is the chosen one where 0 was given.

        Raises:
            ServerError: the address cannot be listened on.
        """
        port = await self._transport.start(address)
        if self._http_transport is not None:
            await self._http_transport.start(parse_address(self._settings.http_address or ""))
        if self._health_transport is not None:
            await self._health_transport.start(parse_address(self._settings.access.health_address or ""))
        if self._authenticator is not None:
            self._following = asyncio.create_task(self._authenticator.follow(self._settings.poll_interval_s))
        return Address(host=address.host, port=port)

    async def set_serving(self) -> None:
        """Set the health status to SERVING, as long as the index of the live version answers."""
        self._is_serving = True
        await self._set_health()
        if self._watching_index is None:
            self._watching_index = asyncio.create_task(self._watch_index())

    async def _set_health(self) -> None:
        """Set the health status by the index of the live version."""
        snapshot = self._live.snapshot
        is_up = snapshot is None or not snapshot.index_failure
        self.metrics.index_up(is_up)
        status = health_pb2.HealthCheckResponse
        await self._health.set(status.SERVING if is_up and self._is_serving else status.NOT_SERVING)

    async def _watch_index(self) -> NoReturn:
        """Follow the state of an index on another machine; one in a file is always there."""
        before = ""
        while True:
            await asyncio.sleep(_INDEX_POLL_S)
            snapshot = self._live.snapshot
            failure = "" if snapshot is None else snapshot.index_failure
            if failure != before:
                before = failure
                await self._set_health()

    def read_files(self) -> None:
        """Read the tokens again now, and the certificates before the next handshake."""
        for followed in (self._authenticator, self._certificates):
            if followed is not None:
                followed.poller.read_now()

    async def wait_for_worker_thread(self) -> None:
        """Return when the thread that runs batches has finished its present one."""
        await self._service.wait_for_worker_thread()

    async def stop(self) -> None:
        """Set NOT_SERVING, wait until callers leave, and answer the calls in flight.

        A call that arrives while gRPC closes its connections is cancelled, not rejected. So callers
        that watch the health service get time to stop calling, and the server closes between two
        calls.
        """
        self._is_serving = False
        if self._watching_index is not None:
            self._watching_index.cancel()
        await self._set_health()
        grace_s = self._settings.grace_s
        leave_s = min(_LEAVE_S, grace_s / 4)
        began_s = monotonic()
        for idle_s in (_QUIET_S, _GAP_S):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle_for(idle_s), leave_s)
                break
        await self._health.end_watches()
        transports = [self._transport, *([] if self._http_transport is None else [self._http_transport])]
        left_s = max(0.0, began_s + grace_s - monotonic())
        await asyncio.gather(*(each.stop(left_s, self._service.wait_idle()) for each in transports))
        if self._health_transport is not None:
            await self._health_transport.stop(0.0, self._service.wait_idle())
        if self._following is not None:
            self._following.cancel()
        self._service.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _idle_for(self, seconds: float) -> None:
        was_idle = False
        while not was_idle:
            await self._service.wait_idle()
            await asyncio.sleep(seconds)
            was_idle = self._service.is_idle
