"""The client as a whole: several worker processes that together put one load on one server."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Final, Self

from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.client_process import Done, Job, Progress, Ready, Run, Stop, main
from re4.benchmarks.load_generator.load import Load, Timing
from re4.benchmarks.load_generator.transport import OURS, Callee
from re4.common.errors import Re4Error, ServerError

CONNECT_TIMEOUT_S: Final = 10.0
START_DELAY_S: Final = 0.1
"""Between the order and the first call, so that every worker has the order by then."""
LATE_AFTER_S: Final = 30.0
"""A worker that is so much later than its last deadline is given up."""
INTERRUPTED: Final = "interrupted"


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How the client is made up."""

    num_workers: int = 1
    """Processes. One offers a few thousand calls per second on a core of its own."""
    num_channels: int = 8
    """Connections of each process: the kernel deals connections, not calls, to a server's processes."""


class LoadClient:
    """Worker processes connected to one address. Use it in a `with` block; one run at a time."""

    def __init__(
        self,
        address: str,
        payloads: Sequence[bytes],
        settings: ClientSettings,
        callee: Callee = OURS,
    ) -> None:
        """Prepare; the processes start with the `with` block.

        Args:
            address: HOST:PORT of the server.
            payloads: Serialised requests, sent in turn.
            settings: How many processes and connections.
            callee: What is called there.
        """
        self._address = address
        self._payloads = payloads
        self._settings = settings
        self._callee = callee
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        num_workers = self._settings.num_workers
        try:
            for worker in range(num_workers):
                ours, theirs = spawn.Pipe()
                job = Job(
                    address=self._address,
                    callee=self._callee,
                    payloads=self._payloads,
                    num_channels=self._settings.num_channels,
                    worker=worker,
                    num_workers=num_workers,
                    connect_timeout_s=CONNECT_TIMEOUT_S,
                )
                process = spawn.Process(target=main, args=(job, theirs), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
            for pipe in self._pipes:
                ready = self._receive(pipe, until=time.monotonic() + CONNECT_TIMEOUT_S + LATE_AFTER_S)
                if isinstance(ready, Ready) and ready.problem:
                    raise ServerError(f"{ready.problem}. Is a server running there?")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()

    def run(
        self,
        load: Load,
        timing: Timing,
        *,
        seed: int,
        version: str,
        watch: Callable[[int, int], str | None] = lambda num_answered, num_failed: None,
    ) -> Tally:
        """Put a load on the server once.

        Ctrl-C ends the run early: what was counted so far is given, marked by `stopped`.

        Args:
            load: What to send.
            timing: For how long.
            seed: Of the arrival times.
            version: The bundle version that is to answer.
            watch: Called a few times a second with the number of answered and failed calls; what it
                returns ends the run as the reason.

        Raises:
            Re4Error: a worker process died or does not report.
        """
        start_at = time.monotonic() + START_DELAY_S
        order = Run(load=load, timing=timing, start_at=start_at, seed=seed, version=version)
        self._tell(order)
        until = start_at + timing.sending_s + timing.deadline_s + LATE_AFTER_S
        interrupts = 0
        news = {pipe: Progress(num_answered=0, num_failed=0) for pipe in self._pipes}
        tallies: list[Tally] = []
        while len(tallies) < len(self._pipes):
            try:
                for pipe in wait(list(news), timeout=0.5):
                    assert isinstance(pipe, Connection)
                    said = self._receive(pipe, until=until)
                    if isinstance(said, Done):
                        tallies.append(said.tally)
                        del news[pipe]
                        if said.tally.stopped:
                            self._tell(Stop(reason=said.tally.stopped))
                    else:
                        news[pipe] = said
                reason = watch(
                    sum(each.num_answered for each in news.values()),
                    sum(each.num_failed for each in news.values()),
                )
                if reason:
                    self._tell(Stop(reason=reason))
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise
                self._tell(Stop(reason=INTERRUPTED))
            if time.monotonic() > until:
                raise Re4Error(f"a worker of the client has not reported for {LATE_AFTER_S:g} seconds")
        whole = tallies[0]
        for tally in tallies[1:]:
            whole.add(tally)
        return whole

    def _tell(self, order: Run | Stop) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(order)
            except OSError:
                raise Re4Error("a worker process of the client died") from None

    def _receive(self, pipe: Connection, *, until: float) -> Any:
        try:
            if pipe.poll(max(0.0, until - time.monotonic())):
                return pipe.recv()
        except (EOFError, OSError):
            raise Re4Error(
                "a worker process of the client died; its message is above, if it had one"
            ) from None
        raise Re4Error(f"a worker of the client has not reported for {LATE_AFTER_S:g} seconds")
