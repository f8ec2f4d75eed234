"""Failures that come from the operating system: how a process ended, and which errors are worth a retry."""

import signal
from typing import Final

from re4.common.errors import TRANSIENT_ERRNOS, BundleUnavailableError

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
