"""Recall of live answers: sampled requests are searched again exactly, in a process of the lowest priority.

    python -m re4.serving.processes.recall_process SUPERVISOR_PID CPU_SHARE    (`recall_monitor.py`)

Each line of stdin is a `RecallSample`; each line of stdout is its recall. The process sleeps between two
samples, so that it uses no more than its share of one core. It maps the version's item vectors, whose pages
the workers share, and holds neither an index nor an encoder.

Legend: D embedding, N items.
"""

import json
import os
import sys
import time
from base64 import b64decode
from pathlib import Path

import numpy as np

from re4.bundle.layout import VECTORS
from re4.bundle.scoring.exact_search import recall_of
from re4.serving.host.parent_death import end_with_parent
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import from_line


def main() -> None:
    """Measure samples until stdin ends."""
    end_with_parent(int(sys.argv[1]))  # also while it sleeps
    os.nice(19)
    cpu_share = float(sys.argv[2])
    for line in sys.stdin.buffer:
        sample = from_line(line)
        assert isinstance(sample, RecallSample)
        began_s = time.process_time()
        vectors_ND = np.load(Path(sample.path) / VECTORS, mmap_mode="r", allow_pickle=False)
        recall = recall_of(
            np.frombuffer(b64decode(sample.interests), np.float32).reshape(-1, vectors_ND.shape[1]),
            vectors_ND,
            np.array(sample.rows, np.int64),
            num_candidates=len(sample.rows),
            excluded_rows=np.array(sample.excluded, np.int64),
        )
        # The supervisor sends the next sample after the reply, and drops those in between.
        time.sleep((time.process_time() - began_s) * (1 / cpu_share - 1))
        sys.stdout.write(json.dumps(recall) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
