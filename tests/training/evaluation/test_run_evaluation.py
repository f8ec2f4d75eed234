"""`re4 evaluate` on newer data: items by id, unknown ones as misses, unseen users, two runs user by user."""

import json
import sys

import numpy as np
import pytest
import torch
from daily_logs import log, prepare
from numpy.testing import assert_allclose

from re4 import cli
from re4.common.errors import DataError, UsageError
from re4.training import api
from re4.training.evaluation.protocol import history_and_targets
from re4.training.evaluation.run_evaluation import match_items
from re4.training.run.run import Run

SETTINGS = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 2, "construct_dim": 4, "num_epochs": 2}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("days")
    return [prepare(log(day + 1), folder / f"data{day}") for day in range(2)]


@pytest.fixture(scope="module")
def runs(days, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first, second = folder / "run0", folder / "run1"
    api.train(days[0], first, device="cpu", **SETTINGS)
    api.train(days[1], second, device="cpu", from_run=first)
    return Run.open(first), Run.open(second)


def expected_recalls(run, dataset, split, cut):
    """Each user's recall, one at a time and by ids; the history stays in the list."""
    model, ids, known = run.load_model(), dataset.items()["item_id"], run.items()["item_id"].to_list()
    recalls = []
    for user in range(dataset.split(split).num_users):
        history, targets = (
            set_or_list.tolist() for set_or_list in history_and_targets(dataset.split(split), user)
        )
        rows = [known.index(ids[row]) for row in history if ids[row] in known][::-1]
        rows = rows[: run.config.max_history_length]
        found = set()
        if rows:
            padded = torch.zeros(1, run.config.max_history_length, dtype=torch.int64)
            padded[0, : len(rows)] = torch.tensor(rows)
            with torch.inference_mode():
                interests_KD = model.interests(padded, torch.tensor([len(rows)])).interests_BKD[0]
                top = (interests_KD @ model.item_vectors_ND().T).amax(dim=0).topk(cut).indices
            found = {known[row] for row in top.tolist()}
        wanted = {ids[row] for row in targets}
        recalls.append(len(found & wanted) / len(wanted))
    return recalls


def test_on_newer_data_unknown_items_are_misses_and_ids_decide(days, runs):
    result = api.evaluate(runs[0].path, data=days[1])
    assert result.num_unknown_items == days[1].num_items - runs[0].num_items == 10
    assert (result.num_users, result.num_users_left_out) == (days[1].test.num_users, 0)
    assert not result.is_leak_possible
    assert_allclose(result.recall_20, np.mean(expected_recalls(runs[0], days[1], "test", 20)))


def test_users_that_were_trained_on_are_left_out_and_counted(days, runs, tmp_path):
    other_seed = prepare(log(2), tmp_path / "data", seed=3)
    result = api.evaluate(runs[0].path, data=other_seed.path, split="valid")
    ids = other_seed.users("valid").to_list()
    unseen = [user for user, name in enumerate(ids) if name not in set(days[0].users("train"))]
    assert 0 < result.num_users == len(unseen) < len(ids)
    assert result.num_users_left_out == len(ids) - len(unseen)
    recalls = expected_recalls(runs[0], other_seed, "valid", 20)
    assert_allclose(result.recall_20, np.mean([recalls[user] for user in unseen]))


def test_two_runs_are_compared_on_the_same_users(days, runs):
    result = api.evaluate(runs[1].path, against=runs[0].path, data=days[1])
    theirs = expected_recalls(runs[0], days[1], "test", 20)
    ours = expected_recalls(runs[1], days[1], "test", 20)
    difference = np.subtract(ours, theirs)
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    interval = result.difference["recall_20"]
    assert_allclose(
        [interval.mean, interval.low, interval.high],
        [difference.mean(), difference.mean() - half, difference.mean() + half],
    )
    assert_allclose([result.recall_20, result.against.recall_20], [np.mean(ours), np.mean(theirs)])
    assert result.against.to_json() == api.evaluate(runs[0].path, data=days[1]).to_json()


def test_users_of_either_run_are_left_out_of_a_comparison(runs, tmp_path):
    other = prepare(log(2), tmp_path / "data", seed=3)
    api.train(other, tmp_path / "run", device="cpu", **SETTINGS)
    alone = api.evaluate(tmp_path / "run")
    compared = api.evaluate(tmp_path / "run", against=runs[1].path)
    assert alone.num_users == other.test.num_users
    assert compared.num_users == compared.against.num_users < alone.num_users
    assert Run.open(tmp_path / "run").evaluation()["test"] == alone.to_json(), "a comparison is not stored"


def test_a_run_against_itself_differs_by_nothing(runs):
    difference = api.evaluate(runs[0].path, against=runs[0].path).difference
    assert {(each.mean, each.low, each.high) for each in difference.values()} == {(0, 0, 0)}


def test_only_figures_of_its_own_data_are_stored_in_a_run(days, runs):
    own = api.evaluate(runs[0].path)
    api.evaluate(runs[0].path, data=days[1])
    assert Run.open(runs[0].path).evaluation()["test"] == own.to_json()


def test_one_json_object_has_the_documented_keys(days, runs, capsys, monkeypatch):
    def evaluate(*words):
        places = ["--against", str(runs[0].path), "--data", str(days[1].path)]
        monkeypatch.setattr(sys, "argv", ["re4", "evaluate", str(runs[1].path), *places, *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    printed = json.loads(evaluate("--json"))
    assert printed["data"] == str(days[1].path)
    honesty = {"num_users_left_out": 0, "num_unknown_items": 0, "is_leak_possible": False}
    assert honesty.items() <= printed.items()
    assert printed["against"]["run"] == str(runs[0].path)
    assert set(printed["difference"]["ndcg_50"]) == {"mean", "low", "high"}
    assert "95 % intervals" in evaluate()


def test_where_everybody_was_trained_on_there_is_nothing_to_say(days, runs, tmp_path):
    by_time = prepare(log(1), tmp_path / "data", split="time")
    api.train(by_time, tmp_path / "run", device="cpu", **SETTINGS)
    with pytest.raises(DataError, match="nobody to evaluate on"):
        api.evaluate(tmp_path / "run", data=days[0])


def test_items_of_another_kind_are_refused(runs, tmp_path):
    strings = log(1).cast({"item": str})
    with pytest.raises(UsageError, match="cannot be matched"):
        match_items(prepare(strings, tmp_path / "data"), runs[0])
