"""Simple models beside a run: the same users, plain sentences, and a stated reason where one is missing."""

import pytest
from planted_tastes import write_planted

from re4.training import api
from re4.training.evaluation import simple_models as module
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.simple_models import SimpleModel, SimpleModels, compare_with_simple_models
from re4.training.run.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simple")
    dataset = write_planted(folder / "data")
    options = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 2, "num_epochs": 0}
    api.train(dataset, folder / "run", device="cpu", **options)
    return Run.open(folder / "run"), dataset


def test_the_same_users_are_compared_and_the_run_is_judged_as_by_training(run):
    run, dataset = run
    found = compare_with_simple_models(run, dataset)
    assert [each.name for each in found.models] == ["most popular", "item-item", "EASE", "EASE with recency"]
    assert found.num_users == dataset.valid.num_users
    assert found.recall_50 == pytest.approx(run.evaluation()["valid"]["recall_50"])
    for each in found.models:
        assert each.lead.mean == pytest.approx(each.recall_50 - found.recall_50)


def test_a_large_catalogue_leaves_models_out_and_says_why(run, monkeypatch):
    run, dataset = run
    monkeypatch.setattr(module, "MAX_EASE_ITEMS", 10)
    found = compare_with_simple_models(run, dataset)
    assert [each.name for each in found.models] == ["most popular", "item-item"]
    assert f"EASE is left out: with {dataset.num_items:,} items" in found.left_out
    monkeypatch.setattr(module, "MAX_ITEM_ITEM_ITEMS", 10)
    found = compare_with_simple_models(run, dataset)
    assert [each.name for each in found.models] == ["most popular"]
    assert "item-item and EASE are left out" in " ".join(found.sentences())


def test_of_many_users_some_are_taken(run, monkeypatch):
    monkeypatch.setattr(module, "MAX_USERS", 20)
    assert compare_with_simple_models(*run).num_users == 20


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (0.03, 0.02, "EASE, a simpler model, is ahead of this run by +0.0300 (+0.0100 to +0.0500) with the"),
        (0.03, 0.04, "This run is not ahead of simpler models, within the 95 % interval: EASE (+0.0300 ("),
        (-0.03, 0.04, None),
    ],
)
def test_a_simpler_model_that_is_ahead_is_named(mean, half, expected):
    lead = Interval(mean=mean, low=mean - half, high=mean + half)
    behind = Interval(mean=-0.1, low=-0.2, high=-0.01)
    ease = SimpleModel(
        name="EASE", recall_50=0.2, recall_50_history_excluded=0.2, lead=lead, lead_history_excluded=behind
    )
    compared = SimpleModels(
        num_users=9, recall_50=0.2, recall_50_history_excluded=0.3, models=[ease], left_out=""
    )
    figures, *rest = compared.sentences()
    assert figures.startswith("Recall@50 on 9 validation users, history left in / left out: this run 0.2000")
    assert "EASE 0.2000 / 0.2000" in figures
    assert [sentence.startswith(expected or "-") for sentence in rest] == [True] * bool(expected)
