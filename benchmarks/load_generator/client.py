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
from re4.benchmarks.load_generator.worker import RunCommand, WorkerConfig, main
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
        """Prepare the client, which sends the payloads in turn; the `with` block starts its processes."""
        self._configs = [
            WorkerConfig(
                address=address,
                transport=transport,
                payloads=payloads,
                settings=settings,
                worker=worker,
                connect_timeout_s=CONNECT_TIMEOUT_S,
            )
            for worker in range(settings.num_workers)
        ]
        self._workers: list[Child] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for config in self._configs:
                child = child_process("a worker process of the client", main, config)
                self._workers.append(stack.enter_context(child))
            for worker in self._workers:
                if problem := worker.receive(CONNECT_TIMEOUT_S + LATE_AFTER_S):
                    raise ServerError(f"{problem}. Is a server running there?")
            self._stack = stack.pop_all()
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
        """Put a load on the server once, with arrival times by the seed; `version` must answer.

        `watch` is called a few times a second with the number of answered and failed calls; a text that it
        returns ends the run, as the reason. Ctrl-C ends it too; the result is what was counted so far.
        """
        start_at = time.monotonic() + START_DELAY_S
        self._send(RunCommand(load=load, timing=timing, start_at=start_at, seed=seed, version=version))
        until = start_at + timing.sending_s + timing.deadline_s + LATE_AFTER_S
        interrupts = 0
        running = {worker.pipe: worker for worker in self._workers}
        progress = dict.fromkeys(running, (0, 0))
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
                            self._send(report.stopped)
                    else:
                        progress[pipe] = report
                if reason := watch(*(sum(column) for column in zip((0, 0), *progress.values(), strict=True))):
                    self._send(reason)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise
                self._send(INTERRUPTED)
            if time.monotonic() > until:
                raise Re4Error(f"a worker of the client has not reported for {LATE_AFTER_S:g} seconds")
        whole = parts[0]
        for part in parts[1:]:
            whole.add(part, max)
        return whole

    def _send(self, command: RunCommand | str) -> None:
        for worker in self._workers:
            try:
                worker.pipe.send(command)
            except OSError:
                raise Re4Error("a worker process of the client died") from None
