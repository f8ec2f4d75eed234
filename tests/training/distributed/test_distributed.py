"""Several ranks train what one trains: real torchrun, TorchRec and gloo, two processes on this machine."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from re4.common.errors import RunError
from re4.common.extras import missing_package
from re4.training import api
from re4.training.config import TrainConfig
from re4.training.evaluation.protocol import rank
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PACKAGES = ROOT / "build/torchrec"
OPTIONS = {
    "embedding_dim": 16,
    "attention_dim": 32,
    "num_interests": 2,
    "construct_dim": 8,
    "batch_size": 2533,  # of 7,600 examples, one is left for the last batch: rank 1 has none
    "learning_rate": 0.003,
    "num_epochs": 3,
    "contrast_weight": 0.1,
    "construct_weight": 0.1,
    "attend_weight": 0.01,
    "logit_adjustment": 0.1,
    "negatives": "uniform",
    "num_negatives": 50,
}
needs_torchrec = pytest.mark.skipif(
    not (find_spec("torchrec") or (PACKAGES / "torchrec").exists()),
    reason="no TorchRec: `make torchrec` installs it into build/torchrec",
)


def torchrun(*words, restarts=0):
    """Start two ranks; return their log."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            f"--max-restarts={restarts}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=127.0.0.1:0",
            *map(str, words),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(PACKAGES)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def ranks(planted, tmp_path_factory):
    """The folder in which two ranks have done everything that `train_on_ranks.py` lists."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(HERE / "train_on_ranks.py", planted.path, folder, json.dumps(OPTIONS))
    return folder


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(run, other, *, loss, recall):
    ours, theirs = records(run), records(other)
    assert len(ours) == len(theirs) == 4
    for one, another in zip(ours, theirs, strict=True):
        for name in one["losses"].keys() & another["losses"].keys():
            assert one["losses"][name] == pytest.approx(another["losses"][name], rel=loss), name
        for name in ("recall_20", "recall_50", "ndcg_20"):
            assert one["valid"][name] == pytest.approx(another["valid"][name], abs=recall), name


@needs_torchrec
def test_a_row_that_two_ranks_read_is_updated_once_by_the_sum_of_gradients(ranks):
    first, second = (torch.load(ranks / f"rows.{rank}.pt") for rank in (0, 1))
    assert first["rows"].tolist() == [119, 0, 60]
    assert (first["first"], second["first"]) == (0, 60)
    table = torch.cat([first["shard"], second["shard"]])
    torch.testing.assert_close(first["after"], table[first["rows"]])
    torch.testing.assert_close(second["after"], table[second["rows"]])
    squares = torch.cat([first["squares"], second["squares"]])
    assert squares.nonzero().flatten().tolist() == [0, 1, 60, 119]
    assert squares[[0, 1, 60, 119]].tolist() == pytest.approx([1, 1, 4, 1])  # the square of the sum
    # Adagrad divides by the root of that: the first step has the length of the learning rate.
    torch.testing.assert_close(first["before"] - first["after"], torch.full((3, 16), 0.5))


@needs_torchrec
def test_the_merged_ranking_of_shards_is_that_of_the_whole_table(ranks, planted):
    config = TrainConfig(**OPTIONS).resolve(planted.num_items)
    model = MultiInterestModel(config, planted.num_items)
    model.load_state_dict(load_file(ranks / "weights.safetensors"))
    expected, found = (
        rank(model, planted.valid, exclude_history=False, title="whole"),
        torch.load(ranks / "ranking.pt", weights_only=False),
    )
    assert found["cosine"] == pytest.approx(expected.interest_cosine)
    assert np.array_equal(found["top"], expected.top_UM)
    assert np.array_equal(found["users"], expected.lists.users_S)
    assert np.array_equal(found["own"], expected.lists.own_SKM)
    assert np.array_equal(found["found_by"], expected.lists.found_by_SM)


@needs_torchrec
def test_settings_that_ranks_cannot_train_are_refused(ranks):
    messages = json.loads((ranks / "messages.json").read_text())
    assert ["torchrun" in message for message in messages] == [True, True, True]
    assert not (ranks / "refused").exists()


@needs_torchrec
@pytest.mark.parametrize("training", ["exact", "transformer"])
def test_one_and_two_ranks_have_the_same_curve(ranks, training):
    assert_same_curve(ranks / f"two-{training}", ranks / f"one-{training}", loss=2e-4, recall=0.01)


@needs_torchrec
def test_stopped_on_two_ranks_and_resumed_on_one(ranks):
    assert_same_curve(ranks / "stopped", ranks / "one-exact", loss=2e-4, recall=0.01)
    assert not (ranks / "stopped" / "checkpoints").exists()


@needs_torchrec
def test_a_damaged_checkpoint_is_refused_and_needs_torchrun(ranks):
    folder = ranks / "damaged/checkpoints/000004"
    assert (ranks / "damaged.txt").read_text().startswith(f"{folder} is damaged: rank 0: ")
    with pytest.raises(RunError, match="torchrun --nproc-per-node 1"):
        api.resume(ranks / "damaged")


@needs_torchrec
def test_the_run_is_that_of_a_single_machine(ranks, planted):
    run = Run.open(ranks / "two")
    evaluated = api.evaluate(run.path, split="valid")
    best = next(each for each in run.metrics() if each["epoch"] == run.best_epoch)
    assert evaluated.recall_50 == pytest.approx(best["valid"]["recall_50"], abs=1e-6)
    assert evaluated.recall_50 > 0.5
    assert {path.name for path in run.path.iterdir()} == {
        "config.json", "weights.safetensors", "items.parquet", "item_counts.npy", "probe_histories.npz",
        "metrics.jsonl", "evaluation.json",
    }  # fmt: skip


@needs_torchrec
def test_a_killed_rank_is_started_again_from_the_last_checkpoint(ranks, planted, tmp_path):
    options = [
        word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    run = tmp_path / "run"
    log = torchrun(
        HERE / "kill_a_rank.py", "train", planted.path, "--out", run, "--device", "cpu", "--no-compare",
        *options, restarts=1,
    )  # fmt: skip
    assert log.count("epoch   1  loss") == 1  # done before the kill, and not again
    without_times = [
        [{name: value for name, value in each.items() if "second" not in name} for each in records(path)]
        for path in (run, ranks / "two")
    ]
    assert without_times[0] == without_times[1]
    assert (run / "weights.safetensors").read_bytes() == (ranks / "two/weights.safetensors").read_bytes()


@pytest.mark.parametrize("module", ["torchrec", "fbgemm_gpu"])
def test_without_torchrec_the_extra_is_named(planted, tmp_path, monkeypatch, module):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchrec", "fbgemm_gpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        api.train(planted, tmp_path / "run", **OPTIONS)
    assert "re4-retrieval[torchrec]" in missing_package(raised.value, "re4 train")
