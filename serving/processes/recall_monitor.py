"""The supervisor's view of the process that measures recall online: one sample at a time, the others dropped.

It is started by the first sample and again by the next one after it died: nothing depends on it.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from re4.serving.host.threads import COMPUTE_ENVIRONMENT
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import to_line

_MAX_LINE_BYTES = 1 << 22

_log = logging.getLogger(__name__)


class RecallMonitor:
    """Has samples measured. Belongs to one event loop."""

    def __init__(self, share: float, on_recall: Callable[[str, float], None]) -> None:
        """Start nothing yet.

        Args:
            share: Of one core, that it may use, above 0 and at most 1.
            on_recall: Told the version and the recall of each answer that was measured.
        """
        self._share = share
        self._on_recall = on_recall
        self._process: asyncio.subprocess.Process | None = None
        self._measuring: asyncio.Task[None] | None = None

    def offer(self, sample: RecallSample) -> None:
        """Measure a sample, unless another one is being measured."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(sample))

    async def stop(self) -> None:
        """End the process."""
        if self._measuring is not None:
            self._measuring.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _measure(self, sample: RecallSample) -> None:
        try:
            process = self._process
            if process is None or process.returncode is not None:
                process = self._process = await self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(to_line(sample))
            await process.stdin.drain()
            line = await process.stdout.readline()
        except OSError as error:
            _log.warning("recall is not measured now: %s", error)
            return
        if line:
            self._on_recall(Path(sample.path).name, float(json.loads(line)))

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "re4.serving.processes.recall_process", str(self._share)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | COMPUTE_ENVIRONMENT,
            limit=_MAX_LINE_BYTES,
        )
