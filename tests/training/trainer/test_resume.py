"""Killed or stopped at any moment, a training goes on and ends with the weights it would have had."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from re4.common.errors import DataError, RunError, TrainingError
from re4.common.file_lock import try_lock
from re4.training.config import ADDED_SINCE, TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run
from re4.training.trainer.checkpoint import CHECKPOINT, read_facts, restore
from re4.training.trainer.loop import resume, train
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.weight_averaging import WeightAverage


@pytest.fixture(scope="module")
def forks(planted):
    """A process whose forks train, and get a signal on the way."""
    script = Path(__file__).with_name("train_and_signal.py")
    paths = os.pathsep.join([str(script.parents[2]), *sys.path])
    with subprocess.Popen(
        [sys.executable, script, planted.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def train_until(forks):
    """Train until a signal comes; the exit code, and what was printed."""

    def order(out, options, **when):
        words = {"out": str(out), "options": options, "precision": "float32", **when}
        forks.stdin.write(json.dumps(words) + "\n")
        forks.stdin.flush()
        return json.loads(forks.stdout.readline())

    return order


@pytest.fixture(scope="module")
def options(small_options):
    return {
        **small_options,
        "num_epochs": 2,
        "batch_size": 1024,
        "negatives": "uniform",
        "num_negatives": 50,
        "next_n": 3,
    }


@pytest.fixture(scope="module")
def uninterrupted(planted, options, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(planted, TrainConfig(**options), run, device="cpu")
    return run


def without_times(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if "second" not in name} for each in records]


def assert_same_run(run, uninterrupted):
    ours, theirs = ((path / "weights.safetensors").read_bytes() for path in (run, uninterrupted))
    assert ours == theirs
    assert without_times(run) == without_times(uninterrupted)
    assert Run.open(run).best_epoch == Run.open(uninterrupted).best_epoch
    assert not (run / CHECKPOINT).exists()


# 7,600 examples are 8 steps an epoch: in the first step, in the first epoch, at its end, and in the second.
@pytest.mark.parametrize("last_step", [1, 2, 8, 9, 15])
def test_killed_and_resumed_is_bit_identical(train_until, options, uninterrupted, tmp_path, last_step):
    run = tmp_path / "run"
    killed = train_until(run, options, signal_number=signal.SIGKILL, last_step=last_step)
    assert killed["code"] == -signal.SIGKILL
    with pytest.raises(RunError, match=f"re4 resume {run}"):
        Run.open(run)
    resume(run, device="cpu")
    assert_same_run(run, uninterrupted)


def test_killed_and_resumed_is_bit_identical_in_bf16(planted, train_until, options, tmp_path):
    train(planted, TrainConfig(**options), tmp_path / "whole", device="cpu", precision="bf16")
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=9, precision="bf16")
    resume(run, device="cpu")  # as it began
    assert_same_run(run, tmp_path / "whole")


def test_a_transformer_killed_and_resumed_is_bit_identical(planted, train_until, tmp_path):
    options = {"model": "transformer", "embedding_dim": 16, "num_epochs": 2, "batch_size": 1024, "next_n": 3}
    train(planted, TrainConfig(**options), tmp_path / "whole", device="cpu")
    run = tmp_path / "run"
    killed = train_until(run, options, signal_number=signal.SIGKILL, last_step=9)
    assert killed["code"] == -signal.SIGKILL
    resume(run, device="cpu")
    assert_same_run(run, tmp_path / "whole")


def as_saved_by_an_earlier_version(checkpoint):
    with safe_open(checkpoint, "pt") as file:
        facts = json.loads(file.metadata()["re4"])
    del facts["crc32"], facts["dataset_checksums"]
    for name in ADDED_SINCE:
        del facts["config"][name]
    added = {"recall_50_half_width", "over_start", "is_behind"}
    facts["progress"]["records"] = [
        {name: value for name, value in record.items() if name not in added}
        for record in facts["progress"]["records"]
        if record["epoch"]  # the start was not judged
    ]
    tensors = {name: value for name, value in load_file(checkpoint).items() if not name.startswith("recall.")}
    save_file(tensors, checkpoint, metadata={"re4": json.dumps(facts)})


def test_the_training_of_an_earlier_version_resumes(planted, train_until, options, tmp_path):
    options = {**options, **ADDED_SINCE, "initial_vectors": "random"}
    train(planted, TrainConfig(**options), tmp_path / "whole", device="cpu")
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=9)
    as_saved_by_an_earlier_version(run / CHECKPOINT)
    resumed = resume(run, device="cpu")
    assert (resumed.over_start, resumed.doubt) == (None, ""), "its start was not judged"
    ours, theirs = ((path / "weights.safetensors").read_bytes() for path in (run, tmp_path / "whole"))
    assert ours == theirs
    assert [each["epoch"] for each in without_times(run)] == [1, 2]


def swap_items(file):
    items_E = np.load(file)
    items_E[0], items_E[-1] = items_E[-1], items_E[0]
    np.save(file, items_E)


def rename_items(file):
    ids = pl.read_parquet(file)
    pl.concat([ids.tail(1), ids.slice(1, len(ids) - 2), ids.head(1)]).write_parquet(file)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("train.items.npy", swap_items, "train users"),
        ("valid.items.npy", swap_items, "valid users"),
        ("items.parquet", rename_items, "items"),
    ],
)
def test_another_data_set_than_the_training_began_with_is_refused(
    planted, train_until, options, uninterrupted, tmp_path, name, change, part
):
    run, data = tmp_path / "run", tmp_path / "moved"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=9)
    before = (run / CHECKPOINT).read_bytes()
    shutil.copytree(planted.path, data)
    change(data / name)
    with pytest.raises(
        DataError, match=rf"{data} is not the data set .*{run} began: other {part}\. Put that"
    ):
        resume(run, Dataset.open(data), device="cpu")
    assert (run / CHECKPOINT).read_bytes() == before
    shutil.copyfile(planted.path / name, data / name)
    resume(run, Dataset.open(data), device="cpu")
    assert_same_run(run, uninterrupted)


def test_one_process_trains_a_run_and_clears_what_a_killed_one_left(
    train_until, options, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=9)
    half_written = run / f".{CHECKPOINT}.99.part"
    half_written.write_bytes(b"half a checkpoi")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with held_by_another(run), pytest.raises(RunError, match="another process trains this run"):
        resume(run, device="cpu")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    resume(run, device="cpu")
    assert_same_run(run, uninterrupted)
    assert {path.name for path in run.iterdir()} == {path.name for path in uninterrupted.iterdir()}


def test_killed_before_its_first_checkpoint_it_can_be_started_again(
    planted, options, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("lock", f".{CHECKPOINT}.99.part"):
        (run / name).write_bytes(b"")
    train(planted, TrainConfig(**options), run, device="cpu")
    assert_same_run(run, uninterrupted)


def test_a_resumed_training_lets_go_of_the_checkpoint(train_until, options, tmp_path):
    """Mapped, it would take its room on disk until the end, beside the next one."""
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=3)
    config = read_facts(run).config
    model = MultiInterestModel(config, len(load_file(run / CHECKPOINT)["model.item_embedding.weight"]))
    optimiser, mean = Optimiser(model), WeightAverage(model, config.averaging)
    restore(run, model, optimiser, mean)
    assert len(optimiser.state()) > 3
    assert str(run / CHECKPOINT) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_saves_says_how_to_go_on_and_does(
    planted, train_until, options, uninterrupted, tmp_path, signal_number
):
    run = tmp_path / "run"
    stopped = train_until(run, options, signal_number=signal_number, last_step=11)
    assert stopped["code"] != 0
    assert f"re4 resume {run}" in " ".join(stopped["output"].split())
    resume(run, planted, device="cpu")
    assert_same_run(run, uninterrupted)


@contextmanager
def held_by_another(run):
    """Be the other process that trains the run."""
    lock = try_lock(run)
    yield
    os.close(lock)


@contextmanager
def no_file_longer_than(num_bytes):
    """Let the system refuse to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_training_resumes_with_space(
    planted, train_until, options, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=9)
    with no_file_longer_than(10_000), pytest.raises(TrainingError, match=f"{run}/.*re4 resume {run}"):
        resume(run, device="cpu")
    resume(run, device="cpu")
    assert_same_run(run, uninterrupted)
    assert not list(run.glob(".*"))


def test_a_disk_that_is_full_from_the_first_epoch_on(planted, options, tmp_path):
    with no_file_longer_than(10_000), pytest.raises(TrainingError, match="train again, to another --out"):
        train(planted, TrainConfig(**options), tmp_path / "run", device="cpu")


def test_a_finished_run_cannot_be_resumed(uninterrupted):
    with pytest.raises(RunError, match="finished, or never began"):
        resume(uninterrupted)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_damaged_checkpoint_is_refused(train_until, options, tmp_path, size):
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=3)
    whole = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(whole[:size])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors"):
        resume(run, device="cpu")


def test_a_flipped_bit_in_a_checkpoint_is_reported(train_until, options, tmp_path):
    run = tmp_path / "run"
    train_until(run, options, signal_number=signal.SIGKILL, last_step=3)
    whole = (run / CHECKPOINT).read_bytes()
    end_of_header = 8 + int.from_bytes(whole[:8], "little")
    tensors = np.random.default_rng(0).integers(end_of_header, len(whole), 5)
    width = whole.index(b"embedding_dim") + len(r"embedding_dim\": ")
    for place in (width, *tensors.tolist()):
        (run / CHECKPOINT).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(RunError, match=rf"{run / CHECKPOINT} is damaged: .*CRC-32"):
            resume(run, device="cpu")
