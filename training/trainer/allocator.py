"""What a step gives back is kept for the next step, and not for the system to take and clear."""

import ctypes

# Names of glibc's `mallopt`; larger pieces than 32 MiB it does not let be kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Have this process keep up to 256 MiB of freed memory, in pieces of at most 32 MiB each.

    A step makes and frees tensors of a few megabytes by the dozen. By itself the C library hands such memory
    back to the system, which clears every page of it when the next step asks anew: thousands of page faults
    a step. Where the library is not glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
