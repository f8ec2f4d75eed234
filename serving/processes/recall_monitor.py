"""The supervisor's handle of the process that measures recall online.

One sample is measured at a time, the others are dropped. The first sample starts the process, and a later one
starts it again after it died: nothing depends on it.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from re4.serving.host.backoff import Backoff
from re4.serving.host.failures import KILLED_WITHIN_S, kill
from re4.serving.host.threads import COMPUTE_ENVIRONMENT
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import to_line

_TIMEOUT_S: Final = 3600.0
"""For one sample. An answer comes after the process slept, which keeps it to its share of a core: 99 times as
long as it computed where the share is 0.01."""

_log = logging.getLogger(__name__)


class RecallMonitor:
    """Measures samples in a child process. Belongs to one event loop."""

    def __init__(self, cpu_share: float, on_recall: Callable[[str, float], None]) -> None:
        """Start nothing yet.

        Args:
            cpu_share: Share of one core that measuring may use, above 0 and at most 1.
            on_recall: Called with the version and the recall of each measured answer.
        """
        self._cpu_share = cpu_share
        self._on_recall = on_recall
        self._process: asyncio.subprocess.Process | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._retry_at_s = 0.0

    def offer(self, sample: RecallSample) -> None:
        """Measure a sample, unless another one is being measured or the process failed just now."""
        is_busy = self._measuring is not None and not self._measuring.done()
        if not is_busy and monotonic() >= self._retry_at_s:
            self._measuring = asyncio.create_task(self._measure(sample))

    async def stop(self) -> None:
        """End the process."""
        if self._measuring is not None:
            self._measuring.cancel()
        if self._process is not None and self._process.returncode is None:
            kill(self._process)
            with suppress(TimeoutError):  # it waits for a dead file system: the system ends it later
                await asyncio.wait_for(self._process.wait(), KILLED_WITHIN_S)

    async def _measure(self, sample: RecallSample) -> None:
        try:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            async with asyncio.timeout(_TIMEOUT_S):
                stdin.write(to_line(sample))
                await stdin.drain()
                recall = float(await stdout.readline())  # an empty line, where it died, is no number
        except Exception as error:  # no recall is worth a failure of the server
            if self._process is not None:
                kill(self._process)  # its answer may still come, and would be taken for the next one's
            delay_s = self._backoff.delay_s()
            self._retry_at_s = monotonic() + delay_s
            _log.warning("recall is not measured for %g seconds: %s", delay_s, error or "no answer")
            return
        self._backoff.reset()
        self._on_recall(Path(sample.path).name, recall)

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "re4.serving.processes.recall_process"),
            *(str(os.getpid()), str(self._cpu_share)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | COMPUTE_ENVIRONMENT,
        )
