"""Build an index of mapped vectors in this process, and print how many bytes that took at most.

usage: build_and_measure.py VECTORS FACTORY FOLDER MEMORY_LIMIT

A small index of the same kind is built before, so that libraries and their buffers are there already.
"""

import sys
from pathlib import Path

import faiss
import numpy as np

from re4.exporting.index import build as building
from re4.exporting.index import memory_estimate as memory
from re4.exporting.index.build import build_index
from re4.exporting.storage import mapped_vectors as mapped
from re4.exporting.storage.build_cache import Checkpoints

PROCESS = Path("/proc/self")
faiss.omp_set_num_threads(1)
building._MIN_TRAINING = 4096  # the sample is part of what a build may hold at any size
memory.WORKING_BYTES = 24 << 20
memory._SMALLEST_SHARD = 1 << 20
mapped.CHUNK_ROWS = 8192


def peak_bytes() -> int:
    status = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


path, factory, folder, limit = sys.argv[1:]
vectors = np.load(path, mmap_mode="r")
few = np.array(vectors[:10_000])
build_index(factory, few)
build_index("Flat", few).index.search(few[:100], 10)
(PROCESS / "clear_refs").write_text("5")  # the peak begins anew
before = peak_bytes()
build_index(factory, vectors, checkpoints=Checkpoints(Path(folder)), memory_limit=int(limit) or None)
sys.stdout.write(f"{peak_bytes() - before}\n")
