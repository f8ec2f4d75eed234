"""The metrics page for Prometheus: the sum of all workers' counts, and the supervisor's metrics.

Workers write their counts to memory-mapped files in one folder (the multi-process mode of
prometheus-client); the supervisor reads the files for each scrape. So a scrape costs the workers nothing, and
the counts of a worker outlive it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from re4.common.errors import ServerError
from re4.serving.host.addresses import Address
from re4.serving.host.temporary_folders import temporary_folder

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder; prometheus-client reads it on import."""


@contextmanager
def metrics_page(address: Address, own: Collector) -> Iterator[tuple[Address, Mapping[str, str]]]:
    """Serve the page while the block runs.

    Args:
        address: Where to listen; port 0 lets the system choose.
        own: Metrics of this process.

    Yields:
        The address with its port, and the environment that worker processes need.

    Raises:
        ServerError: the address cannot be listened on.
    """
    with temporary_folder("re4-serve-metrics-") as folder:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        registry.register(own)
        try:
            server, thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            raise ServerError(
                f"cannot serve metrics on {address}: {error.strerror}. Stop what listens there, or choose "
                "another --metrics-address (port 0 lets the system choose)"
            ) from None
        try:
            port = server.server_port
            yield Address(host=address.host, port=port), {FOLDER_VARIABLE: str(folder)}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
