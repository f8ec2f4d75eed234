"""What a process that computes needs in its environment before it imports numpy, faiss or onnxruntime.

One thread for each library that would otherwise start one per core: a server scales by processes, each with
one compute lane. Pools inside it would fight over the same cores, and two (OpenMP and BLAS) spin while they
wait.
"""

import gc
import os
from pathlib import Path
from typing import Final

COMPUTE_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

ORT_THREADS: Final = 1
"""Threads of each of the two pools of ONNX Runtime: the calling thread itself."""

GRPC_LOG_OFF: Final = {"GRPC_VERBOSITY": "NONE"}
"""For a server's environment, where it does not say otherwise: gRPC itself would write a line, in a form of
its own, for every handshake that fails, so that strangers could fill the log."""

_NEW_OBJECTS_UNCOLLECTED: Final = 20_000
"""Container objects that may be new before cyclic garbage is looked for among them."""


def limit_openmp_threads() -> None:
    """Run OpenMP loops that this thread starts in this thread alone: the setting is a thread's own."""
    import faiss

    faiss.omp_set_num_threads(1)


def limit_garbage_collection() -> None:
    """From now on look for cyclic garbage seldom, and not among what is loaded already.

    What serves a call is freed by reference counts. Under overload hundreds of calls wait at once, which the
    collector takes for a heap that grows, and walks all of it over and over. Later calls change nothing: what
    versions that are loaded later leave behind must be found.
    """
    if gc.get_freeze_count():
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS_UNCOLLECTED, 10, 10)


def thread_pools() -> dict[str, int]:
    """Threads by pool; `process` counts all that there are, gRPC's own and sleeping ones too.

    BLAS has no question of its own that all builds answer: it takes what it was told when it was loaded.
    """
    import faiss

    return {
        "onnxruntime": ORT_THREADS,
        "openmp": int(faiss.omp_get_max_threads()),
        "blas": int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)),
        "process": len(list(Path("/proc/self/task").iterdir())),
    }
