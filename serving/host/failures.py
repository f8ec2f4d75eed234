"""Failures that come from the operating system: ends of processes, and errors that are worth a retry."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Final

from re4.common.errors import TRANSIENT_ERRNOS, BundleUnavailableError

KILLED_WITHIN_S: Final = 5.0
"""How long to wait for the end of a killed process."""

_OUT_OF_MEMORY_TEXTS: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory")
"""Parts of the messages of FAISS and ONNX Runtime where an allocation failed."""


def exit_reason(code: int | None) -> str:
    """Return how a process ended. Real-time signals have a number only."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a child process that may have ended already.

    `Process.kill` of Python 3.11 and 3.12 may take the exit code of an ended child away from asyncio, which
    then logs an unknown child process and reports the exit code 255.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def is_transient(error: BaseException | None) -> bool:
    """Return whether an error, or an error that caused it, may not occur again with the same files."""
    while error is not None:
        # ImportError: a library that cannot be loaded lacks memory or descriptors, or is being replaced.
        if isinstance(error, MemoryError | ImportError | BundleUnavailableError) or any(
            text in str(error) for text in _OUT_OF_MEMORY_TEXTS
        ):
            return True
        if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
            return True
        error = error.__cause__ or error.__context__
    return False
