"""Times of a server and of a null server, each measured alone, on one core; the client has another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from re4.benchmarks.common.pinning import on_core
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Timing
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.server import running_server
from re4.benchmarks.load_generator.transport import GrpcTransport, parse_nothing
from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2

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
    return _measured(lambda: running_server(bundles, *options, num_processes=1), payloads, cores)


def empty_server(
    reply: bytes, payloads: Sequence[bytes], cores: tuple[int, int]
) -> AbstractContextManager[MeasuredServer]:
    """Run a null server on the first core while the block runs."""
    return _measured(lambda: null_server(reply), payloads, cores)


@contextmanager
def _measured(
    start: Callable[[], AbstractContextManager[tuple[str, int]]],
    payloads: Sequence[bytes],
    cores: tuple[int, int],
) -> Iterator[MeasuredServer]:
    with ExitStack() as stack:
        with on_core(cores[0]):
            address, pid = stack.enter_context(start())
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
