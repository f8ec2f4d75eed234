"""Go through many vectors in this process, and print how many bytes that took at most.

usage: read_and_measure.py run RUN FOLDER       take the material from a run, its vectors in a file in FOLDER
       read_and_measure.py gate VECTORS         ask which of its items exact search finds by their own vector

Prints the peaks of this process's own memory, and of all that is resident, beside what was there before.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.scale.watching import Watch
from bundle.arrays import open_array
from export import gates, mapped, material
from training.run import Run

faiss.omp_set_num_threads(1)
torch.set_num_threads(1)
mapped.ROWS_AT_ONCE = material.ROWS_AT_ONCE = 4096

what, path, *folder = sys.argv[1:]
gates._exactly_reached(np.ones((10_000, 64), np.float32), np.arange(64), 5)
watch = Watch()
with watch.watching():
    watch.begin("before")
    time.sleep(0.1)
    watch.begin("meanwhile")
    if what == "run":
        material.run_material(Run.open(Path(path)), Path(*folder))
    else:
        gates._exactly_reached(open_array(Path(path), "<f4", (None, 64)), np.arange(64), 5)
before, meanwhile = watch.stages
print(
    json.dumps(
        {
            "own": meanwhile.peak_own_bytes - before.peak_own_bytes,
            "resident": meanwhile.peak_resident_bytes - before.peak_resident_bytes,
        }
    )
)
