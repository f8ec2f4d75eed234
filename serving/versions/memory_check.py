"""Will a second version fit beside the live one? Asked before anything of it is loaded.

What is counted is memory of the processes' own: index files are mapped, and their pages, like those of the
vectors and ids, can be given back by the system; but codes that FAISS lays out anew when it loads them, the
encoder and its buffers exist once in every process. The process that checks a version needs as much as a
worker and its own libraries, and has ended when the workers load. Knows no process and no index library.
"""

from pathlib import Path
from typing import Final

from re4.bundle.layout import INDEX
from re4.bundle.manifest import Manifest
from re4.bundle.verify import read_manifest
from re4.common.errors import BundleError
from re4.serving.host.cgroups import available_memory_bytes

_FAST_SCAN: Final = "fs"
"""In the factory string of an index whose codes FAISS lays out anew when it loads them; all others are mapped
whole. At 10^7 items a process held 0.46 GiB of its own with a file of 0.38 GiB."""
_ENCODER_BYTES: Final = 48 << 20
"""Encoder, its buffers at the largest batch, and what a search needs: an estimate, on the safe side."""
_CHECK_BYTES: Final = 128 << 20
"""A Python process with FAISS and ONNX Runtime loaded: an estimate, on the safe side."""


def bytes_needed(manifest: Manifest, *, num_processes: int) -> int:
    """Memory that loading a version takes at its worst moment, beside what is loaded already."""
    each = _ENCODER_BYTES + _private_index_bytes(manifest)
    return max(_CHECK_BYTES + each, num_processes * each)


def require_memory(path: Path, *, num_processes: int) -> None:
    """Refuse a version that would not fit.

    Args:
        path: The version's folder.
        num_processes: How many workers would load it.

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
