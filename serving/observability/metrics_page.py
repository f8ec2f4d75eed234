"""The metrics page for Prometheus: the sum of all workers' counts, and the supervisor's metrics.

Workers write their counts to memory-mapped files in one folder (the multi-process mode of
prometheus-client); the supervisor reads the files for each scrape. So a scrape costs the workers nothing, and
the counts of a worker outlive it.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_INET6, SHUT_RDWR
from threading import Thread
from time import monotonic
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from re4.common.errors import ServerError
from re4.serving.host.addresses import Address
from re4.serving.host.temporary_folders import temporary_folder
from re4.serving.observability.metrics import FOLDER_VARIABLE

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""A connection beyond so many is closed at once."""

_FILE_BYTES: Final = {"counter": 1 << 18, "gauge_mostrecent": 1 << 16, "histogram": 1 << 16}
"""Disk space of a worker's counts, by kind; enough for a thousand callers."""

CONNECTION_TIMEOUT_S: Final = 10.0
"""A connection that is not done by then is closed: Prometheus itself gives up after 10 s."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # the base class's name
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    """A thread for each connection, of which there are few at a time and none for long."""

    def __init__(self, *args: Any) -> None:
        self._began_s: dict[Any, float] = {}
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, or close it where there are too many."""
        if len(self._began_s) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._began_s[request] = monotonic()
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        self._began_s.pop(request, None)
        super().close_request(request)

    def service_actions(self) -> None:
        """End connections that last too long; called twice a second."""
        for request, began_s in list(self._began_s.items()):
            if monotonic() - began_s > CONNECTION_TIMEOUT_S:
                with suppress(OSError):  # it has ended meanwhile
                    request.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing but for debugging: the caller left, or was too slow."""
        _log.debug("a call of the metrics page failed", exc_info=True)


def _server(address: Address) -> type[_Server]:
    if ":" not in address.host:
        return _Server
    return type("_ServerIPv6", (_Server,), {"address_family": AF_INET6})


@contextmanager
def metrics_page(
    address: Address, own: Collector, *, num_workers: int
) -> Iterator[tuple[Address, Mapping[str, str]]]:
    """Serve the page while the block runs.

    Args:
        address: Where to listen; port 0 lets the system choose.
        own: Metrics of this process.
        num_workers: Number of the worker processes that count.

    Yields:
        The address with its port, and the environment that worker processes need.

    Raises:
        ServerError: the address cannot be listened on, or there is no space for the counts.
    """
    with temporary_folder("re4-serve-metrics-") as folder:
        _allocate(folder, num_workers)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        registry.register(own)
        try:
            server = make_server(
                address.host, address.port, make_wsgi_app(registry), _server(address), _Handler
            )
        except OSError as error:
            raise ServerError(
                f"cannot serve metrics on {address}: {error.strerror}. Stop what listens there, or choose "
                "another --metrics-address (port 0 lets the system choose)"
            ) from None
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            port = server.server_port
            yield Address(host=address.host, port=port), {FOLDER_VARIABLE: str(folder)}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _allocate(folder: Path, num_workers: int) -> None:
    """Take the disk space of all counts: a worker that maps a file without it is killed on a full disk."""
    try:
        for number in range(1, num_workers + 1):
            for kind, num_bytes in _FILE_BYTES.items():
                with (folder / f"{kind}_{number}.db").open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        raise ServerError(
            f"no space for the metrics of the workers in {folder}: {error.strerror}. Make room there, or let "
            "TMPDIR name another folder"
        ) from None
