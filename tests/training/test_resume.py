"""Killed or stopped at any moment, a training goes on and ends with the weights it would have had."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from re4.errors import RunError
from training.checkpoint import CHECKPOINT
from training.config import TrainConfig
from training.loop import resume, train
from training.run import Run

# Trains in a process of its own that gets the signal at its n-th step, before or after the step is done.
TRAIN_AND_SIGNAL = """
import os, sys
from pathlib import Path
import torch
from training.config import TrainConfig
from training.data.dataset import Dataset
from training.loop import train
from training.optimiser import Optimiser

torch.set_num_threads(1)
data, out, options = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
signal_number, last_step = map(int, sys.argv[4:6])
whole_step, steps = Optimiser.step, 0

def step(self, losses):
    global steps
    steps += 1
    whole_step(self, losses)
    if steps == last_step:
        os.kill(os.getpid(), signal_number)

Optimiser.step = step
train(
    Dataset.open(data), TrainConfig(**options), out, device="cpu", precision=sys.argv[6], checkpoint_minutes=0
)
"""


def train_until(planted, out, options, *, signal_number, last_step, precision="float32"):
    words = [str(planted.path), str(out), repr(options), str(int(signal_number)), str(last_step), precision]
    return subprocess.run(
        [sys.executable, "-c", TRAIN_AND_SIGNAL, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def options(small_options):
    return {**small_options, "num_epochs": 2, "batch_size": 1024, "negatives": "uniform", "num_negatives": 50}


@pytest.fixture
def uninterrupted(planted, options, tmp_path):
    train(planted, TrainConfig(**options), tmp_path / "whole", device="cpu")
    return tmp_path / "whole"


def without_times(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if "second" not in name} for each in records]


def assert_same_run(run, uninterrupted):
    ours, theirs = (load_file(path / "weights.safetensors") for path in (run, uninterrupted))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert without_times(run) == without_times(uninterrupted)
    assert Run.open(run).best_epoch == Run.open(uninterrupted).best_epoch
    assert not (run / CHECKPOINT).exists()


# 7,600 examples are 8 steps an epoch: in the first epoch, at its last step, and in the second.
@pytest.mark.parametrize("last_step", [2, 8, 9, 15])
def test_killed_and_resumed_is_bit_identical(planted, options, uninterrupted, tmp_path, last_step):
    run = tmp_path / "run"
    killed = train_until(planted, run, options, signal_number=signal.SIGKILL, last_step=last_step)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(RunError, match=f"re4 resume {run}"):
        Run.open(run)
    resume(run, device="cpu")
    assert_same_run(run, uninterrupted)


def test_killed_and_resumed_is_bit_identical_in_bf16(planted, options, tmp_path):
    train(planted, TrainConfig(**options), tmp_path / "whole", device="cpu", precision="bf16")
    run = tmp_path / "run"
    train_until(planted, run, options, signal_number=signal.SIGKILL, last_step=9, precision="bf16")
    resume(run, device="cpu")  # as it began
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_saves_says_how_to_go_on_and_does(
    planted, options, uninterrupted, tmp_path, signal_number
):
    run = tmp_path / "run"
    stopped = train_until(planted, run, options, signal_number=signal_number, last_step=11)
    assert stopped.returncode != 0
    assert f"re4 resume {run}" in " ".join(stopped.stderr.split())
    resume(run, planted, device="cpu")
    assert_same_run(run, uninterrupted)


def test_a_finished_run_cannot_be_resumed(uninterrupted):
    with pytest.raises(RunError, match="finished, or never began"):
        resume(uninterrupted)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_damaged_checkpoint_is_refused(planted, options, tmp_path, size):
    run = tmp_path / "run"
    train_until(planted, run, options, signal_number=signal.SIGKILL, last_step=3)
    whole = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(whole[:size])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors"):
        resume(run, device="cpu")
