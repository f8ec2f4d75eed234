"""Export a fake run, and kill this process in the middle of tuning.

usage: export_and_die.py BUNDLES
"""

import os
import signal
import sys
from pathlib import Path

import torch
from run_samples import interrupted_run, publish_run

from re4.exporting.index import index_stages
from re4.exporting.settings import RecallTarget


def die(*args: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
index_stages.tune = die
publish_run(
    interrupted_run(),
    Path(sys.argv[1]),
    index="ivf-pq",
    target=RecallTarget(recall=0.8, num_candidates=20),
)
