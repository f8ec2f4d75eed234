"""`--num-interests auto`: what is trained, what is kept, and what a stop leaves."""

import subprocess
import sys

import numpy as np
import pytest

from re4.common.errors import UsageError
from re4.training import api
from re4.training.config import TrainConfig
from re4.training.evaluation.protocol import rank, recall_50_U
from re4.training.run.run import Run
from re4.training.trainer import interest_choice
from re4.training.trainer.loop import train


@pytest.fixture(scope="module")
def options(small_options):
    return {**small_options, "num_epochs": 1, "device": "cpu", "num_interests": "auto"}


def test_one_interest_is_kept_where_several_are_not_ahead(planted, options, tmp_path):
    result = api.train(planted, tmp_path / "run", **options)
    run = Run.open(tmp_path / "run")
    choice = run.evaluation()["interest_choice"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing else is left"
    assert choice["num_interests"] == 4, "the model's own number"
    assert choice["lead"]["low"] <= 0
    assert choice["kept"] == run.config.K == 1
    recall_U = recall_50_U(
        rank(run.load_model(), planted.valid, exclude_history=False, title=""), planted.valid
    )
    assert choice["recall_50_of_one"] == pytest.approx(recall_U.mean())
    assert result.valid.to_json() == run.evaluation()["valid"]


def test_the_transformer_is_compared_with_four_interests_and_becomes_the_model_of_auto(
    planted, options, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        type(planted), "events_per_user", property(lambda _: 30.0)
    )  # the data set of the tests has fewer
    api.train(planted, tmp_path / "run", **{**options, "model": "auto"})
    run = Run.open(tmp_path / "run")
    choice = run.evaluation()["interest_choice"]
    assert (run.config.model, choice["num_interests"]) == ("transformer", 4)


def test_several_are_kept_where_they_are_ahead(planted, options, tmp_path, monkeypatch):
    def found_U(run, dataset):
        return np.linspace(0.4, 0.6, dataset.valid.num_users) + 0.1 * (run.config.K > 1)

    monkeypatch.setattr(interest_choice, "_recall_U", found_U)
    trained = []
    monkeypatch.setattr(
        interest_choice, "train", lambda *given, **more: trained.append(given[1].K) or train(*given, **more)
    )
    # A part that a stopped command has finished is not trained again.
    api.train(planted, tmp_path / "run.1-interests", **{**options, "num_interests": 1})
    api.train(planted, tmp_path / "run", **options)
    run = Run.open(tmp_path / "run")
    assert (trained, run.config.K) == ([4], 4)
    assert run.evaluation()["interest_choice"]["lead"]["mean"] == pytest.approx(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_word_is_for_training_alone(planted, options, tmp_path):
    with pytest.raises(UsageError, match=r"--num-interests auto is for `re4 train` alone"):
        TrainConfig(num_interests="auto").resolve(100)
    with pytest.raises(UsageError, match=r"--num-interests is 'four'; give a whole number, or auto"):
        TrainConfig(num_interests="four")
    with pytest.raises(UsageError, match=r"with --from, the number of interests is that of the earlier run"):
        api.train(planted, tmp_path / "run", from_run=tmp_path / "run", **options)


def test_the_option_takes_a_number_or_the_word():
    words = [sys.executable, "-m", "re4.cli", "train", "nothing", "--out", "x", "--num-interests"]
    wrong = subprocess.run([*words, "some"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--num-interests" in wrong.stderr
