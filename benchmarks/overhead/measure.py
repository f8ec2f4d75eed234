"""Rounds of short measurements, one after the other: what slows the machine for a while slows all of them.

Server, null server and the bare pipeline run on one core, each alone while it is measured; whoever calls them
runs on another.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from re4.benchmarks.common.cores import on_core
from re4.benchmarks.common.resources import Meter
from re4.benchmarks.load_generator.null_server import null_server
from re4.benchmarks.load_generator.target import running_server, sample_reply
from re4.benchmarks.load_generator.transport import METHOD
from re4.benchmarks.overhead.calls import CallingProcess, CallLoop, calling_process
from re4.benchmarks.overhead.pipeline import PipelineProcess, pipeline_process
from re4.common.errors import ServerError
from re4.protos.v1 import retrieval_pb2

BATCH_METHOD: Final = "/re4.v1.Retrieval/BatchRetrieve"
NUM_CALLERS: Final = 64
"""Callers who saturate a server; also the batch that they let form at most."""
PATIENT: Final = ("--max-queue-ms", "10000")
"""Nobody is shed: how much a server takes at once is not the question here."""
NUM_USERS: Final = 64
"""Users of one BatchRetrieve."""
NUM_BATCH_CALLERS: Final = 2
"""One call is answered while the next one waits."""


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """A server whose callers never let it rest; times are for one request, or user, in microseconds."""

    wall_us: float
    """Time divided by answers."""
    cpu_us: float
    """Processor time of the server divided by answers: hardly changed by whatever else the machine does."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server was measured to do in one round."""

    saturated: Saturated
    p50_us: float
    """Median time of a call that is alone."""
    batch: Saturated | None
    """BatchRetrieve, for each user; None for a null server."""


@dataclass(frozen=True, kw_only=True)
class Bare:
    """The pipeline in one round, for one request, in microseconds."""

    single_us: float
    """Alone in its batch."""
    batched_us: float
    """In batches of `NUM_CALLERS`."""
    single_cpu_us: float
    batched_cpu_us: float


class Subject:
    """A server on a core, with somebody to call it."""

    def __init__(self, caller: CallingProcess, pid: int, payloads: Sequence[bytes], *, batches: bool) -> None:
        self._caller = caller
        self._pid = pid
        self._payloads = payloads
        self._batches = _batches(payloads) if batches else None

    def measure(self, seconds: float) -> Served:
        """Measure once; each part takes so many seconds."""
        saturated = self._saturate(METHOD, self._payloads, NUM_CALLERS, 1, seconds)
        alone = self._caller.run(
            CallLoop(method=METHOD, payloads=self._payloads, num_callers=1, seconds=seconds)
        )
        batch = (
            self._saturate(BATCH_METHOD, self._batches, NUM_BATCH_CALLERS, NUM_USERS, seconds)
            if self._batches
            else None
        )
        return Served(saturated=saturated, p50_us=alone.p50_us, batch=batch)

    def _saturate(
        self, method: str, payloads: Sequence[bytes], num_callers: int, num_users: int, seconds: float
    ) -> Saturated:
        meter = Meter([self._pid])
        calls = self._caller.run(
            CallLoop(method=method, payloads=payloads, num_callers=num_callers, seconds=seconds)
        )
        usage = meter.read()
        if usage is None:
            raise ServerError("the server ended while it was measured")
        wall_us = 1e6 / (calls.per_s * num_users)
        return Saturated(wall_us=wall_us, cpu_us=wall_us * usage.cores)


@contextmanager
def server(
    bundles: Path, payloads: Sequence[bytes], cores: tuple[int, int], device: str
) -> Iterator[tuple[Subject, bytes]]:
    """Serve a bundle directory on the first core while the block runs; also gives one of its replies."""
    with ExitStack() as stack:
        with on_core(cores[0]):
            address, pid = stack.enter_context(
                running_server(bundles, *PATIENT, "--device", device, num_processes=1)
            )
        with on_core(cores[1]):
            caller = stack.enter_context(calling_process(address))
        yield Subject(caller, pid, payloads, batches=True), sample_reply(address, payloads)


@contextmanager
def null(reply: bytes, payloads: Sequence[bytes], cores: tuple[int, int]) -> Iterator[Subject]:
    """Run a null server on the first core while the block runs."""
    with ExitStack() as stack:
        with on_core(cores[0]):
            found = stack.enter_context(null_server(reply))
        with on_core(cores[1]):
            caller = stack.enter_context(calling_process(found.address))
        yield Subject(caller, found.pid, payloads, batches=False)


@contextmanager
def bare(
    version: Path, payloads: Sequence[bytes], cores: tuple[int, int], device: str
) -> Iterator[PipelineProcess]:
    """Load a version on the first core while the block runs."""
    with ExitStack() as stack:
        with on_core(cores[0]):
            found = stack.enter_context(
                pipeline_process(version, payloads, max_batch_size=NUM_CALLERS, device=device)
            )
        yield found


def measure_bare(process: PipelineProcess, seconds: float) -> Bare:
    """Time the pipeline once; each part takes so many seconds."""
    single = process.run(batch_size=1, seconds=seconds)
    batched = process.run(batch_size=NUM_CALLERS, seconds=seconds)
    return Bare(
        single_us=single.wall_us,
        batched_us=batched.wall_us,
        single_cpu_us=single.cpu_us,
        batched_cpu_us=batched.cpu_us,
    )


def _batches(payloads: Sequence[bytes]) -> list[bytes]:
    users = [retrieval_pb2.RetrieveRequest.FromString(data) for data in payloads]
    return [
        retrieval_pb2.BatchRetrieveRequest(users=users[start : start + NUM_USERS]).SerializeToString()
        for start in range(0, max(1, len(users) - NUM_USERS + 1), NUM_USERS)
    ]
