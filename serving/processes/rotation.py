"""The parts of the event log, written at an interval by a process of their own, which loads polars."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from re4.serving.histories.settings import HistorySettings
from re4.serving.observability.metrics import SupervisorMetrics
from re4.settings.fields import flat, option_name, plain

_NICENESS: Final = 10

_log = logging.getLogger(__name__)


class EventLogRotation:
    """Runs `re4 histories rotate`. A rotation that dies is repeated by the next one, without a loss."""

    def __init__(self, settings: HistorySettings, bundles: Path, metrics: SupervisorMetrics) -> None:
        """Start nothing yet.

        Args:
            settings: Of the histories.
            bundles: Bundle directory, for the default folders.
            metrics: Counts the rotations.
        """
        self._queue = settings.store_folder(bundles)
        self._command = (sys.executable, "-P", "-m", "re4.cli", *_words(settings, bundles))
        self._metrics = metrics
        self._failure = ""

    async def poll(self) -> None:
        """Write the parts, if anything was ever recorded."""
        if self._queue is None or not (self._queue / "data.mdb").exists():
            return
        try:
            failure = await self._run()
        except OSError as error:  # the system starts no further process
            failure = str(error)
        if failure:
            self._metrics.num_rotations_failed += 1
            if failure != self._failure:
                _log.error("the event log was not written, its events stay in the store: %s", failure)
        else:
            self._metrics.num_rotations_ok += 1
        self._failure = failure

    async def _run(self) -> str:
        """Run one rotation, and return why it failed; empty where it did not."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:  # the server stops
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == 0:
            return ""
        return " ".join(errors.decode(errors="replace").split())[-1000:] or f"exit code {process.returncode}"


def _words(settings: HistorySettings, bundles: Path) -> Sequence[str]:
    """Return the words of the command, with the settings that are not defaults."""
    defaults = flat(HistorySettings())
    words = ["histories", "rotate", "--bundles", str(bundles)]
    for name, value in flat(settings).items():
        if value != defaults[name]:
            words += [option_name(name), str(plain(value))]
    return words
