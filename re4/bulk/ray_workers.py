"""The workers of a bulk job on a Ray cluster: actors that each open the version once."""

import socket
from collections.abc import Iterator
from typing import Any, Final

from re4.bulk.worker import PartDone, PartWriter, WorkerStart
from re4.common.errors import Re4Error
from re4.common.ray_cluster import RayCluster

_MAX_DEATHS: Final = 20
"""Of workers, before the job ends."""
_QUEUED_PARTS: Final = 2
"""Parts that a worker knows of: the one that it answers and the next one."""


class _Worker:
    """Answers parts on some node."""

    def __init__(self, start: WorkerStart) -> None:
        self._start = start
        self._writer: PartWriter | None = None

    def open(self) -> bool:
        """Open the version.

        Raises:
            Re4Error: The version, the users or the folder of the parts cannot be used on this node.
        """
        start = self._start
        for path in (start.version, start.parts):
            if not path.exists():
                raise Re4Error(
                    f"{path} does not exist on the node {socket.gethostname()}; with --engine ray, every "
                    "node must reach --bundles, --out and the users under the same paths"
                )
        self._writer = PartWriter(start)
        return True

    def write(self, number: int) -> PartDone:
        """Answer and write a part.

        Raises:
            Re4Error: It cannot be answered or written.
        """
        if self._writer is None:
            raise RuntimeError("the worker is not open")
        try:
            return self._writer.write(number)
        except OSError as error:
            raise Re4Error(f"{self._start.parts}: cannot be written: {error}") from None


def write_parts(
    cluster: RayCluster, start: WorkerStart, numbers: list[int], num_workers: int
) -> Iterator[PartDone]:
    """Answer parts by workers of a cluster, and yield each when it is finished.

    Parts of a worker that ended with its node or its process are answered by others.

    Raises:
        Re4Error: a worker reported an error, or too many workers ended.
    """
    shared, todo, num_deaths = cluster.put(start), list(reversed(numbers)), 0
    calls: dict[Any, tuple[Any, int | None]] = {}  # the worker and the part of each call; none is `open`

    def start_worker() -> None:
        worker = cluster.start_actor(_Worker, shared)
        calls[worker.open.remote()] = worker, None

    for _ in range(min(num_workers, len(numbers))):
        start_worker()
    num_left = len(numbers)
    while num_left:
        call, result = cluster.first_completed(list(calls))
        worker, number = calls.pop(call)
        if result is None:
            lost = [each for each, (owner, _) in calls.items() if owner is worker]
            todo += [part for part in (number, *(calls.pop(each)[1] for each in lost)) if part is not None]
            num_deaths += 1
            if num_deaths > _MAX_DEATHS:
                raise Re4Error(
                    f"{num_deaths} workers ended before their parts, perhaps for lack of memory. The "
                    "finished parts are kept: the same command continues the job"
                )
            start_worker()
            continue
        for _ in range(_QUEUED_PARTS if number is None else 1):
            if todo:
                part = todo.pop()
                calls[worker.write.remote(part)] = worker, part
        if number is not None:
            num_left -= 1
            yield result
