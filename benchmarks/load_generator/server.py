"""The server under test: starting `re4 serve`, its `Info`, a sample reply, and its saturated rate."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from re4 import Connection, RetrievalClient
from re4.benchmarks.common.machine import describe_idle_machine
from re4.benchmarks.common.pinning import on_core
from re4.benchmarks.common.report import now_utc
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Timing
from re4.benchmarks.load_generator.requests import choose_histories
from re4.benchmarks.load_generator.transport import GrpcTransport, call_all, median_reply
from re4.bundle.manifest import Manifest
from re4.common.server_process import ServerProcess
from re4.serving.client.connection import PLAIN

SATURATING: Final = ClosedLoad(concurrency=64)
_TIMEOUT_S: Final = 5.0
_NUM_SAMPLES: Final = 20


def server_info(address: str, connection: Connection = PLAIN) -> dict[str, Any]:
    """Return the server's `Info`."""
    with RetrievalClient(address, timeout_s=_TIMEOUT_S, connection=connection) as client:
        return client.info()


def describe_bundle(manifest: Manifest) -> dict[str, Any]:
    """Return the facts of a bundle version that reports hold."""
    return manifest.model_dump(mode="json", include={"version", "created_at", "model", "index", "items"})


def sample_reply(address: str, payloads: Sequence[bytes], connection: Connection = PLAIN) -> bytes:
    """Return the reply of median size to some of the requests, for a null server to send."""
    return median_reply(call_all(GrpcTransport(connection=connection), address, payloads[:_NUM_SAMPLES]))


@contextmanager
def running_server(bundles: Path, *options: str, num_processes: int) -> Iterator[tuple[str, int]]:
    """Run `re4 serve` on a free port while the block runs; gives its address and process id."""
    with ServerProcess(bundles, *options, "--num-processes", str(num_processes)) as server:
        yield server.address, server.pid


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerUnderTest:
    """A server that runs, and a client connected to it."""

    address: str
    pid: int
    version: str
    """The bundle version that answers."""
    client: LoadClient
    payloads: list[bytes]
    source: str
    """Where the histories come from."""
    facts: dict[str, Any]
    """Of machine, server and requests, for a report."""

    def saturate(self, timing: Timing, *, seed: int) -> CallStats:
        """Call with 64 clients that wait for their answers."""
        return self.client.run(SATURATING, timing, seed=seed, version=self.version)


@contextmanager
def server_under_test(
    bundles: Path,
    *,
    data: Path | None,
    num_candidates: int,
    seed: int,
    num_processes: int = 1,
    client: ClientSettings | None = None,
    server_options: Sequence[str] = (),
    cores: tuple[int, int] | None = None,
) -> Iterator[ServerUnderTest]:
    """Run a server on a bundle directory, and a client for it, while the block runs.

    Histories are those of a prepared data set, or generated. Cores are one for the server, and one for the
    client and this thread; None leaves the choice to the kernel.
    """
    machine = describe_idle_machine()
    with ExitStack() as stack:
        with on_core(cores[0]) if cores else nullcontext():
            address, pid = stack.enter_context(
                running_server(bundles, *server_options, num_processes=num_processes)
            )
        stack.enter_context(on_core(cores[1]) if cores else nullcontext())
        info = server_info(address)
        histories = choose_histories(info, data=data, ids=None, bundles=bundles, seed=seed)
        payloads = histories.payloads(num_candidates=num_candidates, exclude_history=False)
        load_client = LoadClient(address, payloads, client or ClientSettings())
        yield ServerUnderTest(
            address=address,
            pid=pid,
            version=str(info["version"]),
            client=stack.enter_context(load_client),
            payloads=payloads,
            source=histories.source,
            facts={
                "created_at": now_utc(),
                "machine": machine,
                "server": {"info": info, "num_processes": num_processes, "options": list(server_options)},
                "requests": {"source": histories.source, "num_candidates": num_candidates},
            },
        )
