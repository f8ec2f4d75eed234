"""Times of a server, of a null server, and of the pipeline without a server, each measured alone on one core.

The client of a server has another core. The pipeline is encode, search and merge in a process of its own: the
code and the settings of a server's worker, with nothing before it and nothing after.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeAlias

from re4.benchmarks.common.child_process import Child, child_process
from re4.benchmarks.common.pinning import on_core
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Timing
from re4.benchmarks.load_generator.server import running_server
from re4.benchmarks.load_generator.transport import GrpcTransport, parse_nothing
from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2
from re4.serving.host.threads import COMPUTE_ENVIRONMENT

BATCH_SIZE: Final = 64
"""Requests of a batch of the pipeline."""
NUM_CLIENTS: Final = 64
"""Concurrent calls that saturate a server."""
NUM_USERS: Final = 64
"""Users of one BatchRetrieve."""
_SINGLE: Final = GrpcTransport(parse=parse_nothing)
_BATCH: Final = GrpcTransport(method="/re4.v1.Retrieval/BatchRetrieve", parse=parse_nothing)
_CLIENT: Final = ClientSettings(num_channels=2)
_TIMEOUT_S: Final = 10.0
_NUM_BATCH_CLIENTS: Final = 2
"""One call is answered while the next one waits."""
_START_TIMEOUT_S: Final = 600
_GRACE_S: Final = 30
_NO_SHEDDING: Final = ("--max-queue-ms", "10000")


Figures: TypeAlias = dict[str, Any]
"""Of a server in one round: `saturated` and `batch`, the BatchRetrieve of a server that has it, each with
`wall_us` and `cpu_us`, time and CPU time of the server divided by answers, or users; and `p50_us`, the median
of a lone call. Other work on the machine hardly changes CPU time.
"""


class MeasuredServer:
    """A server on a core, with clients on another, which do not parse replies."""

    def __init__(self, address: str, pid: int, single: LoadClient, batches: LoadClient) -> None:
        self.address = address
        self._pid = pid
        self._single, self._batches = single, batches

    def measure(self, seconds: float, *, has_batches: bool = True) -> Figures:
        """Measure each part for so many seconds."""
        saturated = self._saturate(self._single, NUM_CLIENTS, 1, seconds)
        p50_us = self._run(self._single, 1, seconds).answered_us.percentile(50)
        batch = self._saturate(self._batches, _NUM_BATCH_CLIENTS, NUM_USERS, seconds) if has_batches else None
        return {"saturated": saturated, "p50_us": float(p50_us or 0), "batch": batch}

    def _saturate(
        self, client: LoadClient, concurrency: int, num_users: int, seconds: float
    ) -> dict[str, float]:
        meter = Meter([self._pid])
        stats = self._run(client, concurrency, seconds)
        usage = meter.read()
        if usage is None:
            raise ServerError("the server ended while it was measured")
        num_answers = stats.answered_us.count * num_users
        return {"wall_us": 1e6 * stats.seconds / num_answers, "cpu_us": 1e6 * usage.cpu_s / num_answers}

    def _run(self, client: LoadClient, concurrency: int, seconds: float) -> CallStats:
        timing = Timing(warmup_s=0.0, duration_s=seconds, deadline_s=_TIMEOUT_S)
        stats = client.run(ClosedLoad(concurrency=concurrency), timing, seed=0, version="")
        if stats.stopped:
            raise KeyboardInterrupt
        if stats.failures:  # a server must bear these loads
            raise ServerError(f"{self.address}: calls failed: {stats.failure_details}")
        return stats


def re4_server(
    bundles: Path, payloads: Sequence[bytes], cores: tuple[int, int], device: str
) -> AbstractContextManager[MeasuredServer]:
    """Serve a bundle directory on the first core while the block runs."""
    options = (*_NO_SHEDDING, "--device", device)
    return measured_server(running_server(bundles, *options, num_processes=1), payloads, cores)


@contextmanager
def measured_server(
    server: AbstractContextManager[tuple[str, int]], payloads: Sequence[bytes], cores: tuple[int, int]
) -> Iterator[MeasuredServer]:
    """Run a server on the first core, and clients for it on the second one, while the block runs."""
    with ExitStack() as stack:
        with on_core(cores[0]):
            address, pid = stack.enter_context(server)
        with on_core(cores[1]):
            single, batches = (
                stack.enter_context(LoadClient(address, requests, _CLIENT, transport))
                for requests, transport in ((payloads, _SINGLE), (_batches(payloads), _BATCH))
            )
        yield MeasuredServer(address, pid, single, batches)


def _batches(payloads: Sequence[bytes]) -> list[bytes]:
    users = [retrieval_pb2.RetrieveRequest.FromString(data) for data in payloads]
    return [
        retrieval_pb2.BatchRetrieveRequest(users=users[start : start + NUM_USERS]).SerializeToString()
        for start in range(0, max(1, len(users) - NUM_USERS + 1), NUM_USERS)
    ]


class PipelineProcess:
    """A process that has loaded a version."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def measure(self, seconds: float) -> dict[str, float]:
        """Return times of one request alone and within a batch of `BATCH_SIZE`, each for so many seconds.

        `single_us` and `batched_us` are medians over batches; `single_cpu_us` and `batched_cpu_us` are means.
        """
        found = {}
        for name, batch_size in (("single", 1), ("batched", BATCH_SIZE)):
            self._child.pipe.send((batch_size, seconds))
            found[f"{name}_us"], found[f"{name}_cpu_us"] = self._child.receive(seconds + _GRACE_S)
        return found


@contextmanager
def pipeline_process(
    version: Path, payloads: Sequence[bytes], *, core: int, device: str
) -> Iterator[PipelineProcess]:
    """Load a version in a process on one core while the block runs; it answers the payloads in turn."""
    name = f"the process that loads {version}"
    with ExitStack() as stack:
        with on_core(core):
            child = stack.enter_context(
                child_process(name, _main, version, payloads, device, environment=COMPUTE_ENVIRONMENT)
            )
        child.receive(_START_TIMEOUT_S)
        yield PipelineProcess(child)


def _main(version: Path, payloads: Sequence[bytes], device: str, pipe: Connection) -> None:
    from re4.bundle.verify import read_manifest
    from re4.serving.api.batch_handler import look_up_ids
    from re4.serving.api.validation import check_retrieve
    from re4.serving.host.threads import limit_openmp_threads
    from re4.serving.retrieval.devices.backend import open_backend
    from re4.serving.retrieval.devices.device import Device
    from re4.serving.settings import ServerSettings
    from re4.serving.versions.snapshot import load_snapshot

    settings = ServerSettings(max_batch_size=BATCH_SIZE, device=Device(device))
    snapshot = load_snapshot(
        version,
        read_manifest(version),
        max_batch_size=settings.max_batch_size,
        backend=open_backend(settings.device),
    )
    requests = [
        check_retrieve(retrieval_pb2.RetrieveRequest.FromString(data), snapshot, settings)
        for data in payloads
    ]
    queries, _ = look_up_ids(requests)
    in_turn = queries * (1 + BATCH_SIZE // len(queries) + 1)
    limit_openmp_threads()
    pipe.send("ready")
    while True:
        try:
            batch_size, seconds = pipe.recv()
        except (EOFError, OSError):
            return
        batch_us, num_requests = [], 0
        cpu_began, now = time.process_time(), time.perf_counter()
        until = now + seconds
        while now < until:
            first = num_requests % len(queries)
            batch = in_turn[first : first + batch_size]
            began = time.perf_counter()
            snapshot.pipeline.run(batch)
            now = time.perf_counter()
            batch_us.append(1e6 * (now - began))
            num_requests += batch_size
        cpu_us = 1e6 * (time.process_time() - cpu_began) / num_requests
        pipe.send((statistics.median_high(batch_us) / batch_size, cpu_us))
