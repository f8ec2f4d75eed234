"""Train again and again in forks of this process, each of which gets a signal at its n-th step.

usage: train_and_signal.py DATA

Orders come on standard input, one JSON object a line: where to train, how, which signal at which step. Each
is answered with one line: the exit code, and what was printed. A fork need not import PyTorch again.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from re4.common.console import log_to_terminal
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.trainer.loop import train
from re4.training.trainer.optimiser import Optimiser


def train_until(data: Path, order: dict[str, Any]) -> None:
    whole_step, num_steps = Optimiser.step, 0

    def step(self: Optimiser, losses: Any, *, rate: float) -> None:
        nonlocal num_steps
        num_steps += 1
        whole_step(self, losses, rate=rate)
        if num_steps == order["last_step"]:
            os.kill(os.getpid(), order["signal_number"])

    Optimiser.step = step
    config = TrainConfig(**order["options"])
    precision = order["precision"]
    train(
        Dataset.open(data),
        config,
        Path(order["out"]),
        device="cpu",
        precision=precision,
        checkpoint_minutes=0,
    )


def in_a_fork(data: Path, order: dict[str, Any]) -> dict[str, Any]:
    with TemporaryFile() as output:
        process = os.fork()
        if not process:
            code = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                train_until(data, order)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        return {"code": code, "output": output.read().decode()}


torch.set_num_threads(1)
log_to_terminal()  # as the command does
for line in sys.stdin:
    sys.stdout.write(json.dumps(in_a_fork(Path(sys.argv[1]), json.loads(line))) + "\n")
    sys.stdout.flush()
