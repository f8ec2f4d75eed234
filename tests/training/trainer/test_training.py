"""`re4 train` and `re4 evaluate`, as a user meets them: what a run holds, and what goes wrong well."""

import json
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from re4.common.errors import DataError, RunError, TrainingError, UsageError
from re4.training.config import ADDED_SINCE, TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import Evaluation, evaluate
from re4.training.presets import PRESETS
from re4.training.run.run import Run
from re4.training.samplers import SAMPLERS
from re4.training.trainer.loop import TrainResult, choose_device, train
from re4.training.trainer.loss_guard import FAILED_STEP
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.tensorboard import write_events


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "re4"
    config = TrainConfig(
        embedding_dim=16,
        attention_dim=32,
        num_interests=2,
        construct_dim=8,
        batch_size=256,
        num_epochs=6,
        learning_rate=0.01,
    )
    train(planted, config, out, device="cpu")
    return Run.open(out)


def popularity_recall_20(dataset):
    """Recall@20 of the most popular items, as a bar that learning must clear."""
    top = np.argsort(-dataset.item_counts(), kind="stable")[:20]
    recalls = []
    for user in range(dataset.test.num_users):
        start, stop = dataset.test.offsets_U1[user : user + 2]
        targets = set(dataset.test.items_E[start + dataset.test.num_history_U[user] : stop].tolist())
        recalls.append(len(targets & set(top.tolist())) / len(targets))
    return np.mean(recalls)


def test_learns_the_planted_tastes(planted, run):
    """Two clusters of 15 items hold each user's future: far better than what is popular."""
    result = evaluate(run.load_model(), planted.test, exclude_history=False)
    assert result.recall_20 > 2 * popularity_recall_20(planted)
    assert result.recall_50 > 0.9


def test_a_run_holds_the_best_epoch_and_the_resolved_configuration(planted, run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(len(lines)))
    assert lines[0]["losses"] == {}, "epoch 0 is the start"
    assert set(lines[1]["losses"]) == {"total", "recommend", "history", "contrast", "attend", "construct"}
    best = max(lines, key=lambda line: line["valid"]["recall_50"])
    assert run.best_epoch == best["epoch"]
    again = evaluate(run.load_model(), planted.valid, exclude_history=False)
    assert again == Evaluation.from_json(best["valid"])
    assert None not in run.config.to_json().values()
    assert run.config.negatives == "all"


def rewrite_settings(run, copy, change):
    shutil.copytree(run.path, copy)
    facts = json.loads((copy / "config.json").read_text())
    change(facts["config"])
    (copy / "config.json").write_text(json.dumps(facts))
    return copy


def test_an_earlier_versions_run_is_read_as_what_it_was(run, tmp_path):
    def earlier(settings):
        for name in ADDED_SINCE:
            del settings[name]

    opened = Run.open(rewrite_settings(run, tmp_path / "earlier", earlier))
    assert opened.config == replace(run.config, **ADDED_SINCE)
    opened.load_model()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", lambda settings: settings.pop("seed")),
        ("of_tomorrow", lambda settings: settings.update(of_tomorrow=1)),
    ],
)
def test_a_run_of_other_settings_is_refused_and_named(run, tmp_path, name, change):
    with pytest.raises(RunError, match=f"another version of this program: {name}"):
        Run.open(rewrite_settings(run, tmp_path / "other", change))


def test_a_run_holds_what_export_needs(planted, run):
    assert run.items()["item_id"].to_list() == planted.items()["item_id"].to_list()
    assert "title" in run.items().columns
    np.testing.assert_array_equal(run.item_counts_N(), planted.item_counts())
    rows, lengths = run.probe_histories()
    assert rows.shape == (planted.valid.num_users, run.config.max_history_length)
    assert (lengths >= 1).all()
    known = {tuple(row) for row in planted.valid.histories(run.config.max_history_length)[0].tolist()}
    assert {tuple(row) for row in rows.tolist()} == known


def test_seeds_decide_everything(planted, small_options, tmp_path):
    def weights(name, seed):
        train(
            planted,
            TrainConfig(**{**small_options, "num_epochs": 1, "seed": seed}),
            tmp_path / name,
            device="cpu",
        )
        return load_file(tmp_path / name / "weights.safetensors")

    first, second, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["item_embedding.weight"], other["item_embedding.weight"])


TRAINED = [name for name, preset in PRESETS.items() if "num_epochs" not in preset.fixed]


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("negatives", SAMPLERS)
def test_every_encoder_trains_with_every_kind_of_negatives(
    planted, small_options, tmp_path, model, negatives
):
    own = {"num_interests": 1} if "num_interests" in PRESETS[model].fixed else {}
    options = {**small_options, "model": model, "negatives": negatives, "num_negatives": 60, "num_epochs": 2}
    result = train(planted, TrainConfig(**{**options, **own}), tmp_path / "run", device="cpu")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["losses"]["recommend"] for line in lines[1:]]
    assert losses[-1] < losses[0]
    assert result.valid.recall_50 > 50 / planted.num_items * 0.9


def test_stops_when_nothing_improves(planted, small_options, tmp_path):
    """Epochs that are not clearly behind the best one count half."""
    options = {**small_options, "learning_rate": 1e-8, "num_epochs": 30, "patience": 2}
    result = train(planted, TrainConfig(**options), tmp_path / "run", device="cpu")
    assert result.num_epochs == result.best_epoch + 4


def test_an_exploding_loss_stops_the_run_and_leaves_none(planted, small_options, tmp_path):
    options = {**small_options, "learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"loss is (nan|inf).*recommend.*--learning-rate"):
        train(planted, TrainConfig(**options), tmp_path / "run", device="cpu")
    with pytest.raises(RunError, match="no finished run"):
        Run.open(tmp_path / "run")
    with safe_open(tmp_path / "run" / FAILED_STEP, "pt") as file:
        facts = json.loads(file.metadata()["re4"])
        rows, lengths = file.get_tensor("rows_BL"), file.get_tensor("lengths_B")
    assert facts["losses"]["total"] in {"nan", "inf"}
    assert facts["config"]["learning_rate"] == 1e30
    assert facts["step"] > 1, "the first step's loss is still that of the start"
    assert len(rows) == len(lengths) == small_options["batch_size"]


def test_tensorboard_has_what_the_metrics_have(planted, small_options, tmp_path):
    options = TrainConfig(**{**small_options, "num_epochs": 2})
    train(planted, options, tmp_path / "run", device="cpu", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    recall = [(event.step, pytest.approx(event.value)) for event in events.Scalars("valid/recall_50")]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [(line["epoch"], line["valid"]["recall_50"]) for line in map(json.loads, lines)] == recall


def test_a_run_has_one_file_of_events_whatever_was_killed(tmp_path):
    records = [
        {"epoch": epoch, "losses": {"total": 4.0 - epoch}, "valid": {"recall_50": 0.25 * epoch},
         "examples_per_second": 8.0}
        for epoch in range(4)
    ]  # fmt: skip
    write_events(tmp_path, records[:2])
    (file,) = (tmp_path / "tensorboard").iterdir()
    whole = file.stat().st_size
    write_events(tmp_path, records[2:3])
    file.write_bytes(file.read_bytes()[:-3])  # killed within a record
    write_events(tmp_path, records[2:3])
    write_events(tmp_path, records[2:])  # killed before the checkpoint: the epoch is repeated
    assert list((tmp_path / "tensorboard").iterdir()) == [file]
    assert file.stat().st_size > whole
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("valid/recall_50")] == [
        (0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)
    ]  # fmt: skip
    assert [event.value for event in events.Scalars("loss/total")] == [4.0, 3.0, 2.0, 1.0]


def test_a_missing_tensorboard_is_an_error_before_training(planted, small_options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"re4-retrieval\[tensorboard\]"):
        train(planted, TrainConfig(**small_options), tmp_path / "run", device="cpu", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_anything_is_not_overwritten(planted, small_options, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty folder"):
        train(planted, TrainConfig(**small_options), tmp_path, device="cpu")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none():
    with pytest.raises(TrainingError, match="no CUDA device"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "lstm"}, "--model is 'lstm'; choose one of re4, comirec-sa"),
        ({"negatives": "hard"}, "--negatives is 'hard'"),
        ({"num_interests": 0}, "--num-interests is 0; the smallest value is 1"),
        ({"num_interests": 65}, "the largest value is 64"),
        ({"contrast_weight": -0.1}, "--contrast-weight is -0.1"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"history_dropout": 1.0}, "--history-dropout is 1.0"),
    ],
)
def test_wrong_settings_name_the_option_and_its_bounds(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)


def test_comirec_has_no_backward_flow_unless_asked_for():
    config = TrainConfig(model="comirec-sa").resolve(100)
    assert (config.contrast_weight, config.attend_weight, config.construct_weight) == (0, 0, 0)
    assert config.history_weight == 0
    assert config.position is True
    assert TrainConfig(model="comirec-sa", contrast_weight=0.2).resolve(100).contrast_weight == 0.2


def test_a_small_catalogue_has_fewer_interests_less_apart_and_less_from_the_history():
    small, large = (TrainConfig().resolve(num_items) for num_items in (5000, 5001))
    assert (small.K, large.K) == (4, 8)
    assert (small.contrast_weight, small.construct_weight, small.history_weight) == (0.02, 0.02, 0.05)
    assert (large.contrast_weight, large.construct_weight, large.history_weight) == (0.1, 0.1, 0.2)
    assert TrainConfig(contrast_weight=0.1).resolve(5000).contrast_weight == 0.1
    assert TrainConfig(num_interests=4).resolve(5001).K == 4
    comirec = TrainConfig(model="comirec-sa")
    assert comirec.resolve(5000).K == 4
    assert comirec.resolve(5000) == comirec.resolve(5001)


@pytest.mark.parametrize("num_items", [100, 10_000])
def test_one_interest_has_none_to_be_kept_from(num_items):
    config = TrainConfig(num_interests=1).resolve(num_items)
    assert (config.contrast_weight, config.attend_weight, config.construct_weight) == (0, 0, 0)
    assert config.history_weight == 0
    assert TrainConfig(num_interests=1, contrast_weight=0.1).resolve(num_items).contrast_weight == 0.1


def test_a_large_catalogue_gets_sampled_negatives():
    assert TrainConfig().resolve(20_001).negatives == "uniform"
    assert TrainConfig(negatives="popularity").resolve(20_001).negatives == "popularity"


CHECKED = [
    ("items.parquet", Run.items),
    ("item_counts.npy", Run.item_counts_N),
    ("probe_histories.npz", Run.probe_histories),
    ("metrics.jsonl", Run.metrics),
    ("weights.safetensors", Run.load_model),
]
"""Files of a run whose checksums are compared, and what reads them."""


class TestDamagedRuns:
    @pytest.fixture
    def damaged(self, run, tmp_path):
        for file in run.path.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def test_nothing_there(self, tmp_path):
        with pytest.raises(RunError, match="no run at"):
            Run.open(tmp_path / "absent")

    def test_an_unfinished_run(self, damaged):
        (damaged / "config.json").unlink()
        with pytest.raises(RunError, match="no finished run"):
            Run.open(damaged)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}}'])
    def test_a_broken_configuration(self, damaged, text):
        (damaged / "config.json").write_text(text)
        with pytest.raises(RunError, match=r"config\.json"):
            Run.open(damaged)

    def test_truncated_weights(self, damaged):
        weights = damaged / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(RunError, match="weights"):
            Run.open(damaged).load_model()

    def test_weights_of_another_model(self, damaged):
        weights = load_file(damaged / "weights.safetensors")
        weights["item_embedding.weight"] = weights["item_embedding.weight"][:-1].contiguous()
        save_file(weights, damaged / "weights.safetensors")
        with pytest.raises(RunError, match="weights"):
            Run.open(damaged).load_model()

    def test_a_missing_file(self, damaged):
        (damaged / "items.parquet").unlink()
        with pytest.raises(RunError, match=r"items\.parquet is missing"):
            Run.open(damaged).items()

    @pytest.mark.parametrize(
        ("name", "read"),
        [*CHECKED, ("items.parquet", Run.scan_items), ("evaluation.json", Run.evaluation)],
    )
    def test_whichever_file_is_cut_short_or_overwritten_is_named(self, damaged, name, read):
        whole = (damaged / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"\x93[{(", b"\x00\xff" * 20 + whole[40:]):
            (damaged / name).write_bytes(content)
            with pytest.raises(RunError, match=rf"{name} is damaged, or of another run: .*Train the run"):
                read(Run.open(damaged))

    @pytest.mark.parametrize(("name", "read"), CHECKED)
    @pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
    def test_a_flipped_bit_is_reported(self, damaged, name, read, place):
        content = bytearray((damaged / name).read_bytes())
        content[int(place * len(content))] ^= 0x10
        (damaged / name).write_bytes(content)
        with pytest.raises(RunError, match=rf"{name} is damaged, or of another run: .*CRC-32"):
            read(Run.open(damaged))

    def test_an_earlier_versions_run_has_no_checksums_and_is_read(self, run, damaged):
        config = json.loads((damaged / "config.json").read_text())
        del config["crc32"]
        (damaged / "config.json").write_text(json.dumps(config))
        weights = load_file(damaged / "weights.safetensors")
        save_file(weights, damaged / "weights.safetensors")
        earlier = Run.open(damaged)
        assert earlier.items().equals(run.items())
        assert earlier.metrics() == run.metrics()
        for name, value in earlier.load_model().state_dict().items():
            assert torch.equal(value, weights[name])

    def test_a_data_set_that_has_moved_is_named_and_asked_for(self, planted, damaged):
        config = json.loads((damaged / "config.json").read_text())
        (damaged / "config.json").write_text(json.dumps(config | {"dataset": "/gone/data"}))
        run = Run.open(damaged)
        with pytest.raises(
            DataError, match=f"{damaged} was trained on /gone/data, which is not there; say .*--data"
        ):
            run.open_dataset()
        assert run.open_dataset(planted.path).path == planted.path


def test_another_data_set_is_refused(planted, run, tmp_path):
    other = Dataset(
        path=tmp_path, info=planted.info, train=planted.train, valid=planted.valid, test=planted.test
    )
    planted.items().reverse().write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="their items differ"):
        run.check_dataset(other)
    run.check_dataset(planted)


def test_a_start_that_no_epoch_betters_is_kept_and_stated(planted, small_options, tmp_path):
    options = {**small_options, "learning_rate": 1.0, "num_epochs": 2, "averaging": 0.0}
    result = train(planted, TrainConfig(**options), tmp_path / "run", device="cpu")
    start = train(planted, TrainConfig(**{**options, "num_epochs": 0}), tmp_path / "start", device="cpu")
    assert (result.best_epoch, result.num_epochs) == (0, 2)
    assert result.valid == start.valid
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("run", "start"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result.doubt.startswith("Training did not help: on ")
    assert start.doubt == "", "nothing was trained"


def test_the_interval_of_each_epoch_is_recorded(run):
    _, *epochs = records = run.metrics()
    assert all(0 <= record["recall_50_half_width"] < 0.1 for record in records)
    for record in epochs:
        gain = record["valid"]["recall_50"] - records[0]["valid"]["recall_50"]
        assert record["over_start"]["mean"] == pytest.approx(gain)
        assert record["over_start"]["low"] <= gain <= record["over_start"]["high"]


def result_with(best_epoch, over_start):
    names = {field.name for field in fields(Evaluation)} - {"num_users", "interests"}
    valid = Evaluation(num_users=100, **dict.fromkeys(names, 0.5))
    return TrainResult(
        best_epoch=best_epoch,
        num_epochs=6,
        seconds_per_epoch=1.0,
        examples_per_second=1.0,
        valid=valid,
        valid_half_width=0.1,
        over_start=over_start,
    )


def test_a_gain_within_its_interval_is_doubted():
    small, clear = Interval(mean=0.01, low=-0.01, high=0.03), Interval(mean=0.02, low=0.01, high=0.03)
    assert "may not have helped: on 100 validation users" in result_with(3, small).doubt
    assert "+0.0100 (-0.0100 to +0.0300)" in result_with(3, small).doubt
    assert result_with(3, clear).doubt == ""
    assert result_with(3, None).doubt == "", "a training of an earlier version"


@pytest.mark.parametrize(("warm_up", "shares"), [(0.0, [1, 1]), (1.5, [2 / 3, 1]), (1.0, [1, 1])])
def test_the_learning_rate_rises_over_the_warm_up(
    planted, small_options, tmp_path, monkeypatch, warm_up, shares
):
    """The shares of the rate at the end of the first and of the second epoch."""
    rates, step = [], Optimiser.step
    monkeypatch.setattr(
        Optimiser,
        "step",
        lambda self, losses, *, rate: (rates.append(rate), step(self, losses, rate=rate))[1],
    )
    options = {**small_options, "num_epochs": 2, "warm_up": warm_up}
    train(planted, TrainConfig(**options), tmp_path / "run", device="cpu")
    half = len(rates) // 2
    assert [rates[half - 1], rates[-1]] == pytest.approx(shares)
    assert rates[0] == pytest.approx(1 / (warm_up * half) if warm_up else 1)
    assert rates == sorted(rates)
