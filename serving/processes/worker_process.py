"""The supervisor's view of one worker process: start it, give it orders, hear its reports, stop it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from re4.common.errors import ServerError
from re4.serving.host.threads import COMPUTE_ENVIRONMENT, QUIET_TRANSPORT
from re4.serving.processes.messages import Failed, Line, Load, Opened, Serving, Start, from_line, to_line

_MAX_LINE_BYTES = 1 << 20


class WorkerProcess:
    """A running worker. Make one by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, number: int) -> None:
        self._process = process
        self._number = number
        self.pid = process.pid
        self.thread_pools: Mapping[str, int] = {}
        """Threads by pool, as the worker last said."""

    @classmethod
    async def start(cls, order: Start, environment: Mapping[str, str]) -> "WorkerProcess":
        """Start a worker and wait until it serves; where it gets no version yet, until its port is open.

        Args:
            order: What it is to be.
            environment: Variables that it needs beside this process's own.

        Raises:
            ServerError: it ended, or said that it cannot serve.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "re4.serving.processes.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=QUIET_TRANSPORT | os.environ | COMPUTE_ENVIRONMENT | dict(environment),
            limit=_MAX_LINE_BYTES,
        )
        worker = cls(process, order.number)
        try:
            worker.send(order)
            await worker._hear(Opened if order.path is None else Serving)
        except BaseException:  # cancelled too: no process is left behind
            await worker.stop(0)
            raise
        return worker

    async def load_first(self, path: Path) -> None:
        """Have a worker that was started without a version load one, and wait until it answers from it.

        Raises:
            ServerError: it ended, or said that it cannot.
        """
        self.send(Load(path=str(path)))
        await self._hear(Serving)

    async def _hear(self, wanted: type[Opened] | type[Serving]) -> None:
        async for report in self.reports():
            if isinstance(report, wanted):
                return
            if isinstance(report, Failed):
                raise ServerError(f"worker {self._number} cannot serve: {report.failure}")
        raise ServerError(f"worker {self._number} ended with {await self.wait()} before it could serve")

    def send(self, order: Line) -> None:
        """Give an order; a worker that is ending gets none."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(to_line(order))

    async def reports(self) -> AsyncIterator[Line]:
        """What the worker says, until it ends."""
        stdout = self._process.stdout
        while stdout is not None and (line := await stdout.readline()):
            report = from_line(line)
            if isinstance(report, Serving):
                self.thread_pools = report.thread_pools
            yield report

    async def wait(self) -> str:
        """Wait for the end; how it ended, in words."""
        code = await self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def stop(self, timeout_s: float) -> None:
        """Ask the worker to end; kill it where it has not within the time."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None and timeout_s == 0:
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s or None)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
