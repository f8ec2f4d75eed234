"""Recall of live answers: sampled requests searched again exactly, in a process that gives way to all others.

    python -m re4.serving.processes.recall_process SHARE        (started by `recall_monitor.py`)

Each line of stdin is a `RecallSample`; each line of stdout the recall that it had. Between two samples the
process sleeps, so that it uses no more than a share of one core, at the lowest priority. It maps the
version's item vectors, whose pages the workers share, and holds neither an index nor an encoder.

An item counts as found where its true score is at least that of the last exact candidate: ties harm nobody.

Legend: K interests, D embedding, N items, M candidates.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.layout import VECTORS
from re4.serving.observability.recall_sample import RecallSample
from re4.serving.processes.messages import from_line

_TOLERANCE: Final = 1e-5
"""Relative: float32 sums in another order differ by less."""
_ITEMS_AT_ONCE: Final = 1 << 16


def answer_recall(
    interests_KD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    found_rows_M: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
) -> float:
    """The share of the exact candidates that an answer by maximum score holds, 0 to 1.

    Args:
        interests_KD: Of the request.
        vectors_ND: All item vectors; may be memory-mapped.
        found_rows_M: What it was answered with, at least one row.
        excluded_rows: What must not be among the candidates.
    """
    num_candidates = len(found_rows_M)
    best = np.empty(0, np.float32)
    for start in range(0, len(vectors_ND), _ITEMS_AT_ONCE):
        vectors = vectors_ND[start : start + _ITEMS_AT_ONCE]
        scores = (vectors @ interests_KD.T).max(axis=1)
        here = excluded_rows[(excluded_rows >= start) & (excluded_rows < start + len(vectors))]
        scores[here - start] = -np.inf
        best = np.concatenate([best, scores])
        if len(best) > num_candidates:
            best = np.partition(best, len(best) - num_candidates)[-num_candidates:]
    threshold = float(best.min())
    found_M = (vectors_ND[found_rows_M] @ interests_KD.T).max(axis=1)
    return float(np.mean(found_M >= threshold - _TOLERANCE * abs(threshold)))


def main() -> None:
    """Work until stdin ends."""
    os.nice(19)
    share = float(sys.argv[1])
    for line in sys.stdin.buffer:
        sample = from_line(line)
        assert isinstance(sample, RecallSample)
        began_s = time.process_time()
        vectors_ND = np.load(Path(sample.path) / VECTORS, mmap_mode="r", allow_pickle=False)
        recall = answer_recall(
            np.array(sample.interests, np.float32),
            vectors_ND,
            np.array(sample.rows, np.int64),
            np.array(sample.excluded, np.int64),
        )
        # Only then is the next one sent: what is sampled in the meantime is dropped.
        time.sleep((time.process_time() - began_s) * (1 / share - 1))
        sys.stdout.write(json.dumps(recall) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
