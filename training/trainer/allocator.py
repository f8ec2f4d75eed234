"""Allocator settings: the memory that a step frees stays in the process for the next step."""

import ctypes

# Parameters of glibc's `mallopt`, which limits the second one to 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Keep up to 256 MiB of freed memory in this process, in blocks of at most 32 MiB each.

    A step allocates and frees dozens of tensors of a few megabytes. By default glibc returns such
    memory to the system, which clears every page for the next step: thousands of page faults a
    step. With another C library nothing is changed. The setting holds for the whole process; it is
    made when a training begins.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
