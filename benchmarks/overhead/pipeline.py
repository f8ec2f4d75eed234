"""The work itself, without a server: encode, search and merge in a process of its own, timed by the batch.

The same code with the same settings as a server's worker runs, with nothing before it and nothing after.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from re4.benchmarks.common.child_process import Child, child_process
from re4.benchmarks.common.pinning import on_core
from re4.serving.host.threads import COMPUTE_ENVIRONMENT

BATCH_SIZE: Final = 64
_START_TIMEOUT_S: Final = 600
_GRACE_S: Final = 30


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
    from re4.protos.v1 import retrieval_pb2
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
