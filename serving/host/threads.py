"""Threads of a process that computes: one for each library that would otherwise start one per core.

A server scales by processes, each with one worker thread. Thread pools inside them would compete for the
same cores, and two of them (OpenMP and BLAS) spin while they wait.
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
"""Environment of a process before it imports numpy, faiss or onnxruntime."""

ORT_THREADS: Final = 1
"""Size of each of the two thread pools of ONNX Runtime: the calling thread alone."""

GRPC_LOG_OFF: Final = {"GRPC_VERBOSITY": "NONE"}
"""Default environment of a worker. gRPC's core would write a line in its own format for every failed
handshake, so that strangers could fill the log."""

_NEW_OBJECTS_UNCOLLECTED: Final = 20_000
"""Allocations of container objects before the garbage collector runs."""


def limit_openmp_threads() -> None:
    """Run the OpenMP loops of the calling thread in this thread alone; OpenMP keeps the limit per thread."""
    import faiss

    faiss.omp_set_num_threads(1)


def limit_garbage_collection() -> None:
    """Run the garbage collector seldom, and freeze the objects that exist now.

    The objects of a call are freed by reference counts. Under overload hundreds of calls wait at once. The
    collector takes that for a growing heap and traverses all of it again and again. Only the first call has
    an effect: garbage of versions that are loaded later must be found.
    """
    if gc.get_freeze_count():
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS_UNCOLLECTED, 10, 10)


def thread_pools() -> dict[str, int]:
    """Return the threads by pool; `process` counts all threads, including gRPC's and sleeping ones.

    Not every build of BLAS can report its threads: its number is the setting with which it was loaded.
    """
    import faiss

    return {
        "onnxruntime": ORT_THREADS,
        "openmp": int(faiss.omp_get_max_threads()),
        "blas": int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1)),
        "process": len(list(Path("/proc/self/task").iterdir())),
    }
