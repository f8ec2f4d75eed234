"""The work itself, without a server: encode, search and merge in a process of its own, timed by the batch.

The same code with the same settings as a server's worker runs, with nothing before it and nothing after.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from re4.benchmarks.common.child_process import child_process
from re4.common.errors import Re4Error
from re4.serving.host.threads import COMPUTE_ENVIRONMENT

_START_TIMEOUT_S: Final = 600
_GRACE_S: Final = 30


@dataclass(frozen=True, kw_only=True)
class PipelineTime:
    """Time of one request within batches of one size, in microseconds."""

    wall_us: float
    """Median over batches."""
    cpu_us: float
    """Processor time of the process, mean."""


class PipelineProcess:
    """A process that has loaded a version."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def run(self, *, batch_size: int, seconds: float) -> PipelineTime:
        """Answer batches of one size for so many seconds."""
        self._pipe.send((batch_size, seconds))
        if not self._pipe.poll(seconds + _GRACE_S):
            raise Re4Error("the process that times the pipeline does not report")
        try:
            found: PipelineTime = self._pipe.recv()
        except EOFError:
            raise Re4Error("the process that times the pipeline died; its message is above") from None
        return found


@contextmanager
def pipeline_process(
    version: Path, payloads: Sequence[bytes], *, max_batch_size: int, device: str
) -> Iterator[PipelineProcess]:
    """Load a version in a process of its own while the block runs. It runs on the cores of this thread.

    Args:
        version: Folder of a bundle version.
        payloads: Serialised `RetrieveRequest`s, answered in turn.
        max_batch_size: Largest batch that will be asked for.
        device: As for `re4 serve`.
    """
    arguments = (version, payloads, max_batch_size, device)
    with child_process(_main, *arguments, environment=COMPUTE_ENVIRONMENT) as (pipe, _):
        if not pipe.poll(_START_TIMEOUT_S):
            raise Re4Error(f"{version} was not loaded within {_START_TIMEOUT_S} seconds")
        try:
            pipe.recv()
        except EOFError:
            raise Re4Error(f"{version} could not be loaded; the message is above") from None
        yield PipelineProcess(pipe)


def _main(
    version: Path, payloads: Sequence[bytes], max_batch_size: int, device: str, pipe: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from re4.bundle.verify import read_manifest
    from re4.protos.v1 import retrieval_pb2
    from re4.serving.api.batch_handler import look_up_ids
    from re4.serving.api.validation import check_retrieve
    from re4.serving.host.threads import limit_openmp_threads
    from re4.serving.retrieval.devices.backend import open_backend
    from re4.serving.retrieval.devices.device import Device
    from re4.serving.settings import ServerSettings
    from re4.serving.versions.snapshot import load_snapshot

    settings = ServerSettings(max_batch_size=max_batch_size, device=Device(device))
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
    in_turn = queries * (1 + max_batch_size // len(queries) + 1)
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
        pipe.send(
            PipelineTime(
                wall_us=sorted(batch_us)[len(batch_us) // 2] / batch_size,
                cpu_us=1e6 * (time.process_time() - cpu_began) / num_requests,
            )
        )
