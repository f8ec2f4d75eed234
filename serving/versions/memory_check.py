"""Check that a second version fits into memory beside the live one, before any part of it is loaded.

Only the processes' private memory is counted. Index, vectors and ids are mapped files, whose pages the system
can reclaim. The encoder, its buffers, and codes that FAISS rearranges on load exist once in every process.
The process that checks a version needs as much as a worker and its own libraries, and has ended when the
workers load.
"""

from pathlib import Path
from typing import Final

from re4.bundle.layout import INDEX
from re4.bundle.manifest import Manifest
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError
from re4.serving.host.cgroups import available_memory_bytes

_FAST_SCAN: Final = "fs"
"""Part of the factory string of an index whose codes FAISS rearranges on load; all others are mapped whole.
At 10^7 items a process held 0.46 GiB of private memory with a file of 0.38 GiB."""
_ENCODER_BYTES: Final = 48 << 20
"""Encoder, its buffers at the largest batch, and memory of a search: an estimate on the safe side."""
_CHECK_BYTES: Final = 128 << 20
"""A Python process with FAISS and ONNX Runtime loaded: an estimate on the safe side."""


def bytes_needed(manifest: Manifest, *, num_processes: int) -> int:
    """Return the peak memory of loading a version, beside the live one."""
    each = _ENCODER_BYTES + _private_index_bytes(manifest)
    return max(_CHECK_BYTES + each, num_processes * each)


def require_memory(path: Path, *, num_processes: int) -> None:
    """Check that a version would fit.

    Args:
        path: The version's folder.
        num_processes: Number of workers that would load it.

    Raises:
        BundleError: it would not fit, or its manifest cannot be read.
    """
    needed = bytes_needed(read_manifest(path), num_processes=num_processes)
    available = available_memory_bytes()
    if needed > available:
        raise BundleError(
            f"{path}: to load it beside the live version, {num_processes} worker(s) and the check need about "
            f"{needed >> 20:,} MiB of their own, and {max(available, 0) >> 20:,} MiB can be had. Free some, "
            "run fewer --num-processes or raise the container's limit, then publish again or roll forward; "
            "--no-memory-check turns this off"
        )


def _private_index_bytes(manifest: Manifest) -> int:
    if _FAST_SCAN not in (manifest.index.factory or ""):
        return 0
    return next((entry.num_bytes for entry in manifest.files if entry.name == INDEX), 0)
