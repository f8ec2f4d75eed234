"""How many threads each library's pool has in this process: asked of the libraries, not of the settings."""

import os
from pathlib import Path

import faiss

from serving.encoder import NUM_THREADS


def thread_pools() -> dict[str, int]:
    """Threads by pool; `process` counts all that there are, gRPC's own and sleeping ones too.

    BLAS has no question of its own that all builds answer: it takes what it was told when it was loaded.
    """
    return {
        "onnxruntime": NUM_THREADS,
        "openmp": int(faiss.omp_get_max_threads()),
        "blas": int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)),
        "process": len(list(Path("/proc/self/task").iterdir())),
    }
