"""The supervisor's handle of one worker process: start it, send commands, read its reports, stop it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from re4.common.errors import ServerError
from re4.serving.host.failures import KILLED_WITHIN_S, exit_reason, kill
from re4.serving.host.threads import COMPUTE_ENVIRONMENT, GRPC_LOG_OFF
from re4.serving.processes.messages import (
    MAX_LINE_BYTES,
    Command,
    CommandFailed,
    Heartbeat,
    LoadVersion,
    Message,
    PortOpened,
    StartWorker,
    VersionLoaded,
    from_line,
    to_line,
)

_MAX_UNREADABLE_LINES: Final = 3
"""After so many in a row the stream is unusable: the worker is killed, and its successor starts a new one."""
_CHUNK_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A line of a worker that is no report: too long, cut off by the worker's death, or malformed."""

    reason: str


class WorkerProcess:
    """A running worker. Make one by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, number: int) -> None:
        self._process = process
        self._number = number
        self.pid = process.pid
        self.thread_pools: Mapping[str, int] = {}
        """Threads by pool, from the worker's last report."""
        self._has_reported = False

    @classmethod
    async def start(
        cls, command: StartWorker, environment: Mapping[str, str], *, end_within_s: float
    ) -> "WorkerProcess":
        """Start a worker and wait until it serves; where it has no version yet, until its port is open.

        Args:
            command: Identity and settings.
            environment: Variables that it needs beside this process's own.
            end_within_s: How long it may live after the end of this process.

        Raises:
            ServerError: it ended, or reported that it cannot serve.
            OSError: the system starts no further process.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "re4.serving.processes.worker"),
            *(str(os.getpid()), str(end_within_s)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=GRPC_LOG_OFF | os.environ | COMPUTE_ENVIRONMENT | dict(environment),
            limit=MAX_LINE_BYTES,
        )
        worker = cls(process, command.number)
        try:
            worker.send(command)
            await worker._wait_for(PortOpened if command.path is None else VersionLoaded)
        except BaseException:  # cancelled too: no process is left behind
            await worker.kill()
            raise
        return worker

    async def load_first(self, version: LoadVersion) -> None:
        """Load the first version of a worker that was started without one, and wait until it answers.

        Raises:
            ServerError: the worker ended, or reported that it cannot serve.
        """
        self.send(version)
        await self._wait_for(VersionLoaded)

    async def _wait_for(self, wanted: type[PortOpened] | type[VersionLoaded]) -> None:
        async for report in self.reports():
            if isinstance(report, wanted):
                return
            if isinstance(report, CommandFailed):
                raise ServerError(f"worker {self._number} cannot serve: {report.failure}")
        raise ServerError(f"worker {self._number} ended with {await self.wait()} before it could serve")

    def send(self, command: Command) -> None:
        """Send a command; a worker that is ending gets none."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(to_line(command))

    async def reports(self) -> AsyncIterator[Message | Unreadable]:
        """Yield the worker's reports until its stream ends or is unusable. No line raises."""
        stdout = self._process.stdout
        assert stdout is not None
        num_unreadable = 0
        while num_unreadable < _MAX_UNREADABLE_LINES:
            try:
                line = await stdout.readline()  # ValueError where it is longer than the limit
                if not line:
                    return
                report = from_line(line)
            except ValueError as error:
                num_unreadable += 1
                yield Unreadable(reason=str(error))
                continue
            num_unreadable = 0
            if isinstance(report, Heartbeat):
                self._has_reported = True
            if isinstance(report, VersionLoaded):
                self.thread_pools = report.thread_pools
            yield report
        kill(self._process)
        while await stdout.read(_CHUNK_BYTES):  # its end is only noticed when the pipe is empty
            pass

    async def wait_until_unresponsive(self, *, interval_s: float, num_intervals: int) -> None:
        """Return when the worker has sent no heartbeat for so many intervals in a row.

        Intervals of this process are counted, not seconds of a clock: the time in which this process or the
        whole machine was stopped is no silence of the worker.
        """
        num_silent = 0
        while num_silent < num_intervals:
            self._has_reported = False
            await asyncio.sleep(interval_s)
            num_silent = 0 if self._has_reported else num_silent + 1

    async def wait(self) -> str:
        """Wait for the end and return its reason."""
        return exit_reason(await self._process.wait())

    async def stop(self, timeout_s: float) -> None:
        """End the worker; kill it where it does not end within the time."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> str:
        """Kill the worker and return how it ended.

        A process that waits for a dead device or file system may stay; it answers nothing.
        """
        kill(self._process)
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), KILLED_WITHIN_S)
        return "no end: the system cannot kill it yet"
