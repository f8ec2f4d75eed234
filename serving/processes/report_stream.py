"""A worker's end of the pipe to the supervisor. No write blocks, whatever state the supervisor is in.

The kernel's pipe holds 64 KiB. A stopped supervisor reads nothing, and a write to the full pipe would block
the event loop and with it every call. So the rest of a report is kept in memory and written later, and
reports that can be done without are dropped until then.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final

from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import MAX_LINE_BYTES, Heartbeat, Report, to_line

HEARTBEATS_PER_TIMEOUT: Final = 10
"""Heartbeats within the time after which the supervisor replaces a worker that sends none."""
_CLOSE_S: Final = 1.0
"""How long the last reports may take to be written at the end of the process."""

_log = logging.getLogger(__name__)


class ReportStream:
    """Sends reports in their order. Belongs to one event loop."""

    def __init__(self, transport: asyncio.WriteTransport, closed: "asyncio.Future[None]") -> None:
        """Make one by `open`."""
        self._transport = transport
        self._closed = closed
        self.on_dropped_sample: Callable[[], None] = lambda: None
        """Called for each recall sample that the supervisor could not take."""

    @classmethod
    async def open(cls, pipe: IO[bytes]) -> "ReportStream":
        """Open a stream on the write end of a pipe, which closes with the stream."""
        loop = asyncio.get_running_loop()
        closed: asyncio.Future[None] = loop.create_future()
        transport, _ = await loop.connect_write_pipe(lambda: _Protocol(closed), pipe)
        return cls(transport, closed)

    def send(self, report: Report) -> None:
        """Send a report; a sample or a heartbeat is dropped while earlier reports wait."""
        line = to_line(report)
        if len(line) > MAX_LINE_BYTES:  # a recall sample of very long lists, which can be done without
            _log.warning("a report of %d bytes is dropped: at most %d are sent", len(line), MAX_LINE_BYTES)
            return
        if self._transport.get_write_buffer_size() and isinstance(report, RecallSample | Heartbeat):
            if isinstance(report, RecallSample):
                self.on_dropped_sample()
            return
        if not self._transport.is_closing():
            self._transport.write(line)

    async def close(self) -> None:
        """Write the reports that wait, and close the pipe."""
        self._transport.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed, _CLOSE_S)


class _Protocol(asyncio.BaseProtocol):
    def __init__(self, closed: "asyncio.Future[None]") -> None:
        self._closed = closed

    def connection_lost(self, _: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
