"""A warm start is judged on users that no earlier run was trained on, along the whole chain of runs."""

import json
import shutil

import polars as pl
import pytest
from daily_logs import as_an_earlier_versions_run, log, prepare, prepare_as_earlier_versions

from re4.common.errors import DataError, TrainingError
from re4.training import api
from re4.training.run.run import Run
from re4.training.run.trained_on import TrainedOn
from re4.training.trainer import loop
from re4.training.trainer.loop import resume

SETTINGS = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 2, "construct_dim": 4, "num_epochs": 1}


def train(dataset, out, **options):
    api.train(dataset, out, device="cpu", **SETTINGS, **options)
    return Run.open(out)


def valid_counts(run):
    """The users of each validation of a run: the epochs', the kept one's, and the earlier run's."""
    kept = run.evaluation()
    return {
        *(record["valid"]["num_users"] for record in run.metrics()),
        kept["valid"]["num_users"],
        kept["valid_by_previous_run"]["num_users"],
    }


def num_unseen(dataset, earlier, split="valid"):
    seen = set(pl.concat([each.users("train") for each in earlier]))
    return len(set(dataset.users(split)) - seen)


def test_with_the_hash_everybody_is_judged_and_nothing_is_warned_of(tmp_path, caplog):
    yesterday, today = prepare(log(1), tmp_path / "data1"), prepare(log(2), tmp_path / "data2")
    first = train(yesterday, tmp_path / "run1")
    shutil.rmtree(yesterday.path)
    second = train(today, tmp_path / "run2", from_run=first.path)
    assert valid_counts(second) == {today.valid.num_users}
    assert api.evaluate(second.path).num_users == today.test.num_users
    assert "training" not in " ".join(
        record.message for record in caplog.records if record.levelname == "WARNING"
    )


def test_config_records_the_split_of_each_run_of_the_chain(tmp_path):
    days = [prepare(log(day + 1), tmp_path / f"data{day}", seed=day) for day in range(3)]
    run = None
    for day, dataset in enumerate(days):
        run = train(dataset, tmp_path / f"run{day}", **({"from_run": run.path} if run else {}))
    recorded = json.loads((run.path / "config.json").read_text())["trained_on"]
    assert [TrainedOn(**each) for each in recorded] == [TrainedOn.of(day) for day in reversed(days)]
    shutil.rmtree(tmp_path / "run0")
    shutil.rmtree(tmp_path / "run1")
    assert Run.open(run.path).trained_on() == [TrainedOn(**each) for each in recorded], (
        "earlier runs are gone"
    )


def test_after_data_of_an_earlier_version_only_unseen_users_are_judged(tmp_path, monkeypatch, caplog):
    yesterday = prepare_as_earlier_versions(log(1), tmp_path / "data1", monkeypatch)
    today = prepare_as_earlier_versions(log(2), tmp_path / "data2", monkeypatch)
    first = train(yesterday, tmp_path / "run1")
    as_an_earlier_versions_run(first.path)
    with caplog.at_level("WARNING"):
        second = train(today, tmp_path / "run2", from_run=first.path)
    expected = num_unseen(today, [yesterday])
    assert expected < today.valid.num_users
    assert valid_counts(second) == {expected}
    assert f"the figures are those of the other {expected:,}" in caplog.text
    tested = api.evaluate(second.path)
    assert tested.num_users == num_unseen(today, [yesterday], "test")
    assert tested.num_users + tested.num_users_left_out == today.test.num_users


def test_a_chain_of_runs_of_earlier_versions_counts_as_a_whole(tmp_path, monkeypatch):
    days = [
        prepare_as_earlier_versions(log(d + 1), tmp_path / f"data{d}", monkeypatch, seed=d) for d in range(3)
    ]
    first = train(days[0], tmp_path / "run0")
    second = train(days[1], tmp_path / "run1", from_run=first.path)
    for run in (first, second):
        as_an_earlier_versions_run(run.path)
    third = train(days[2], tmp_path / "run2", from_run=second.path)
    assert valid_counts(third) == {num_unseen(days[2], days[:2])}


def test_where_the_earlier_data_are_gone_it_says_that_it_cannot_know(tmp_path, monkeypatch, caplog):
    yesterday = prepare_as_earlier_versions(log(1), tmp_path / "data1", monkeypatch)
    today = prepare(log(2), tmp_path / "data2")
    first = train(yesterday, tmp_path / "run1")
    shutil.rmtree(yesterday.path)
    with caplog.at_level("WARNING"):
        second = train(today, tmp_path / "run2", from_run=first.path)
    assert valid_counts(second) == {today.valid.num_users}
    assert "It cannot be known whether valid users were in the training" in caplog.text
    assert "may be too high" in caplog.text
    assert api.evaluate(second.path).is_leak_possible


def test_renamed_runs_of_earlier_versions_are_no_endless_chain(tmp_path):
    run = train(prepare(log(1), tmp_path / "data"), tmp_path / "run")
    as_an_earlier_versions_run(run.path)
    facts = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**facts, "started_from": str(run.path)}))
    opened = Run.open(run.path)
    assert opened.trained_on() == [TrainedOn.of(opened.open_dataset()), TrainedOn()]


def test_where_everybody_was_trained_on_nothing_is_written(tmp_path):
    by_time = prepare(log(2), tmp_path / "data1", split="time")
    first = train(by_time, tmp_path / "run1")
    with pytest.raises(DataError, match=r"All valid users .* were in an earlier training"):
        train(prepare(log(2), tmp_path / "data2"), tmp_path / "run2", from_run=first.path)
    assert not (tmp_path / "run2").exists()


def test_a_resumed_warm_start_is_judged_on_the_same_users(tmp_path, monkeypatch):
    yesterday = prepare(log(1), tmp_path / "data1", seed=1)
    today = prepare(log(2), tmp_path / "data2")
    first = train(yesterday, tmp_path / "run1")

    def stop(trainer, is_stopped):
        if trainer._progress.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(trainer, is_stopped)

    train_epoch = loop.Trainer._train_epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            api.train(
                today, tmp_path / "run2", from_run=first.path, device="cpu", **{**SETTINGS, "num_epochs": 2}
            )
    yesterday.path.rename(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="the data set of an earlier run is gone"):
        resume(tmp_path / "run2", device="cpu")
    (tmp_path / "elsewhere").rename(yesterday.path)
    resume(tmp_path / "run2", device="cpu")
    second = Run.open(tmp_path / "run2")
    assert valid_counts(second) == {num_unseen(today, [yesterday])}
    assert second.trained_on() == [TrainedOn.of(today), TrainedOn.of(yesterday)]
