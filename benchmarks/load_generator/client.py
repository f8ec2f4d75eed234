"""The load client: several worker processes that together put one load on one server."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from typing import Final, Self

from re4.benchmarks.common.child_process import Child, child_process
from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.load import ClientSettings, Load, Timing
from re4.benchmarks.load_generator.transport import RETRIEVE, Transport
from re4.benchmarks.load_generator.worker import Progress, RunCommand, StopCommand, WorkerConfig, main
from re4.common.errors import Re4Error, ServerError

CONNECT_TIMEOUT_S: Final = 10.0
START_DELAY_S: Final = 0.1
"""Between the command and the first call, so that every worker has received the command by then."""
LATE_AFTER_S: Final = 30.0
"""A worker that is so much later than its last deadline is given up."""
INTERRUPTED: Final = "interrupted"


class LoadClient:
    """Worker processes connected to one address. Use it in a `with` block; one run at a time."""

    def __init__(
        self,
        address: str,
        payloads: Sequence[bytes],
        settings: ClientSettings,
        transport: Transport = RETRIEVE,
    ) -> None:
        """Prepare the client; the processes start with the `with` block.

        Args:
            address: HOST:PORT of the server.
            payloads: Serialised requests, sent in turn.
            settings: Number of processes and connections.
            transport: How the server is called.
        """
        self._configs = [
            WorkerConfig(
                address=address,
                transport=transport,
                payloads=payloads,
                num_channels=settings.num_channels,
                worker=worker,
                num_workers=settings.num_workers,
                connect_timeout_s=CONNECT_TIMEOUT_S,
            )
            for worker in range(settings.num_workers)
        ]
        self._stack = ExitStack()
        self._workers: list[Child] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def __enter__(self) -> Self:
        try:
            for config in self._configs:
                child = child_process("a worker process of the client", main, config)
                self._workers.append(self._stack.enter_context(child))
            for worker in self._workers:
                if problem := worker.receive(CONNECT_TIMEOUT_S + LATE_AFTER_S).problem:
                    raise ServerError(f"{problem}. Is a server running there?")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self,
        load: Load,
        timing: Timing,
        *,
        seed: int,
        version: str,
        watch: Callable[[int, int], str | None] = lambda num_answered, num_failed: None,
    ) -> CallStats:
        """Put a load on the server once.

        Ctrl-C ends the run early; the result is then what was counted so far, marked by `stopped`.

        Args:
            load: What to send.
            timing: For how long.
            seed: Of the arrival times.
            version: The bundle version that must answer.
            watch: Called a few times a second with the number of answered and failed calls; a text that it
                returns ends the run, as the reason.
        """
        start_at = time.monotonic() + START_DELAY_S
        self._send(RunCommand(load=load, timing=timing, start_at=start_at, seed=seed, version=version))
        until = start_at + timing.sending_s + timing.deadline_s + LATE_AFTER_S
        interrupts = 0
        running = {worker.pipe: worker for worker in self._workers}
        progress = dict.fromkeys(running, Progress())
        parts: list[CallStats] = []
        while running:
            try:
                for pipe in wait(list(running), timeout=0.5):
                    assert isinstance(pipe, Connection)
                    report = running[pipe].receive(max(0.0, until - time.monotonic()))
                    if isinstance(report, CallStats):
                        parts.append(report)
                        del running[pipe], progress[pipe]
                        if report.stopped:
                            self._send(StopCommand(reason=report.stopped))
                    else:
                        progress[pipe] = report
                reason = watch(
                    sum(each.num_answered for each in progress.values()),
                    sum(each.num_failed for each in progress.values()),
                )
                if reason:
                    self._send(StopCommand(reason=reason))
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise
                self._send(StopCommand(reason=INTERRUPTED))
            if time.monotonic() > until:
                raise Re4Error(f"a worker of the client has not reported for {LATE_AFTER_S:g} seconds")
        whole = parts[0]
        for part in parts[1:]:
            whole.add(part)
        return whole

    def _send(self, command: RunCommand | StopCommand) -> None:
        for worker in self._workers:
            try:
                worker.pipe.send(command)
            except OSError:
                raise Re4Error("a worker process of the client died") from None
