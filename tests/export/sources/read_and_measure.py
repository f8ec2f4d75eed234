"""Go through many vectors in this process, and print how many bytes that took at most, and afterwards.

usage: read_and_measure.py run RUN FOLDER       take the inputs from a run, its vectors in a file in FOLDER
       read_and_measure.py gate VECTORS         ask which of its items exact search finds by their own vector
       read_and_measure.py index VECTORS FOLDER build an index, tune it and write it into FOLDER

Prints the peaks of this process's own memory, and of all that is resident, beside what was there before; and
how much of its own it holds when it is done. Own memory is looked at every now and then; of what is resident
Linux itself keeps the peak, so that no moment is too short to be seen.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from re4.benchmarks.scale.stage_monitor import StageMonitor
from re4.bundle.array_files import open_array
from re4.bundle.golden import GoldenQueries
from re4.bundle.scoring import exact_search as exact
from re4.exporting.index.index_stages import make_index
from re4.exporting.rebuild import quality_gates as gates
from re4.exporting.settings import VersionSettings
from re4.exporting.sources import version_inputs
from re4.exporting.storage import mapped_vectors as mapped
from re4.training.run.run import Run

faiss.omp_set_num_threads(1)
torch.set_num_threads(1)
mapped.CHUNK_ROWS = version_inputs.CHUNK_ROWS = exact._CHUNK_ITEMS = 4096

what, path, *folder = sys.argv[1:]
RESET_PEAK = "5"  # of what is resident: proc(5), /proc/pid/clear_refs
few = np.random.default_rng(0).standard_normal((10_000, 64), np.float32)


def make(vectors_ND: NDArray[np.float32], folder: Path) -> None:
    queries_QKD = few[:40].reshape(20, 2, 64)
    golden = GoldenQueries(
        rows_QL=np.zeros((20, 1), np.int64),
        lengths_Q=np.ones(20, np.int64),
        interests_QKD=queries_QKD,
        candidate_rows_QM=np.zeros((20, 5), np.int64),
        scores_QM=np.zeros((20, 5), np.float32),
    )
    make_index(
        "IVF16,Flat",
        vectors_ND,
        queries_QKD,
        golden,
        VersionSettings(recall=0.6, num_candidates=5),
        folder,
    )


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) << 10


# Libraries and their buffers are there already.
gates._found_exactly(few[:64], few, 5)
if what == "index":
    with TemporaryDirectory() as scratch:
        make(few, Path(scratch))
watch = StageMonitor()
with watch.running():
    watch.begin("before")
    time.sleep(0.1)
    watch.begin("meanwhile")
    Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    resident_before = resident("VmRSS")
    if what == "run":
        version_inputs.inputs_from_run(Run.open(Path(path)), Path(*folder))
    else:
        vectors = open_array(Path(path), "<f4", (None, 64))
        if what == "gate":
            gates._found_exactly(mapped.read_rows(vectors, np.arange(64)), vectors, 5)
        else:
            make(vectors, *map(Path, folder))
    resident_peak = resident("VmHWM")
    watch.begin("afterwards")
    time.sleep(0.1)
before, meanwhile, afterwards = watch.stages
print(
    json.dumps(
        {
            "own": meanwhile.peak_own_bytes - before.peak_own_bytes,
            "resident": resident_peak - resident_before,
            "left": afterwards.peak_own_bytes - before.peak_own_bytes,
        }
    )
)
