"""Times of a server and of a null server, each measured alone, on one core; the client has another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from re4.benchmarks.common.pinning import on_core
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.server import running_server
from re4.benchmarks.load_generator.transport import METHOD
from re4.benchmarks.overhead.client import ClosedLoop, ClosedLoopClient, closed_loop_client
from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2

NUM_CLIENTS: Final = 64
"""Concurrent calls that saturate a server."""
NUM_USERS: Final = 64
"""Users of one BatchRetrieve."""
_BATCH_METHOD: Final = "/re4.v1.Retrieval/BatchRetrieve"
_NUM_BATCH_CLIENTS: Final = 2
"""One call is answered while the next one waits."""
_NO_SHEDDING: Final = ("--max-queue-ms", "10000")


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Time of one request, or user, of a saturated server, in microseconds."""

    wall_us: float
    """Time divided by answers."""
    cpu_us: float
    """CPU time of the server divided by answers: hardly changed by other work on the machine."""


@dataclass(frozen=True, kw_only=True)
class ServerTimes:
    """Figures of a server in one round."""

    saturated: Saturated
    p50_us: float
    """Median time of a lone call."""
    batch: Saturated | None
    """BatchRetrieve, for each user; None for a null server."""


class MeasuredServer:
    """A server on a core, with a client on another."""

    def __init__(self, client: ClosedLoopClient, address: str, pid: int, payloads: Sequence[bytes]) -> None:
        self.address = address
        self._client = client
        self._pid = pid
        self._payloads = payloads

    def measure(self, seconds: float, *, has_batches: bool = True) -> ServerTimes:
        """Measure each part for so many seconds."""
        saturated = self._saturate(METHOD, self._payloads, NUM_CLIENTS, 1, seconds)
        lone = self._client.run(
            ClosedLoop(method=METHOD, payloads=self._payloads, concurrency=1, seconds=seconds)
        )
        batch = None
        if has_batches:
            batches = _batches(self._payloads)
            batch = self._saturate(_BATCH_METHOD, batches, _NUM_BATCH_CLIENTS, NUM_USERS, seconds)
        return ServerTimes(saturated=saturated, p50_us=lone.p50_us, batch=batch)

    def _saturate(
        self, method: str, payloads: Sequence[bytes], concurrency: int, num_users: int, seconds: float
    ) -> Saturated:
        meter = Meter([self._pid])
        loop = ClosedLoop(method=method, payloads=payloads, concurrency=concurrency, seconds=seconds)
        per_s = self._client.run(loop).per_s
        usage = meter.read()
        if usage is None:
            raise ServerError("the server ended while it was measured")
        wall_us = 1e6 / (per_s * num_users)
        return Saturated(wall_us=wall_us, cpu_us=wall_us * usage.cores)


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
            client = stack.enter_context(closed_loop_client(address))
        yield MeasuredServer(client, address, pid, payloads)


def _batches(payloads: Sequence[bytes]) -> list[bytes]:
    users = [retrieval_pb2.RetrieveRequest.FromString(data) for data in payloads]
    return [
        retrieval_pb2.BatchRetrieveRequest(users=users[start : start + NUM_USERS]).SerializeToString()
        for start in range(0, max(1, len(users) - NUM_USERS + 1), NUM_USERS)
    ]
