"""The weights that are judged and kept are a running mean of those that are trained."""

import pytest
import torch

from re4.training.config import TrainConfig
from re4.training.evaluation.protocol import evaluate
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run
from re4.training.trainer.loop import train
from re4.training.trainer.weight_averaging import TIMES_PER_EPOCH, WeightAverage


@pytest.fixture
def model():
    return MultiInterestModel(TrainConfig(embedding_dim=4, attention_dim=3).resolve(9), 9)


def set_to(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def means_of(model, values, *, num_epochs=2.0):
    """Every mean, after each of an epoch's steps of which all are taken in."""
    mean, found = WeightAverage(model, num_epochs), []
    for number, value in enumerate(values):
        set_to(model, value)
        mean.after_step(model, number % TIMES_PER_EPOCH + 1, TIMES_PER_EPOCH)
        weights = torch.cat([parameter.detach().flatten() for parameter in mean.model.parameters()])
        assert (weights == weights[0]).all()
        found.append(float(weights[0]))
    return found


def test_first_it_is_a_mean_of_the_last_quarter_then_of_the_last_epochs(model):
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    expected, mean = [], 0.0
    for number, value in enumerate(values, start=1):
        share = max(4 / (number + 3), 1 / (2 * TIMES_PER_EPOCH))
        mean += share * (value - mean)
        expected.append(mean)
    found = means_of(model, values)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(values[0])  # what training starts from is not in it


def test_it_lags_by_a_quarter_and_later_by_no_more_than_its_epochs(model):
    found = means_of(model, [float(number) for number in range(1000)])
    assert 100 - found[100] < 0.3 * 100
    assert 999 - found[999] == pytest.approx(2 * TIMES_PER_EPOCH, rel=0.05)


@pytest.mark.parametrize(("num_steps", "times"), [(5, 5), (16, 16), (17, 16), (1000, 16)])
def test_a_few_times_an_epoch(model, num_steps, times):
    mean = WeightAverage(model, 1000.0)
    taken = 0
    for step in range(1, num_steps + 1):
        before = int(mean.state()["num_taken"])
        mean.after_step(model, step, num_steps)
        taken += int(mean.state()["num_taken"]) - before
    assert taken == times


def test_what_is_kept_is_what_was_judged(planted, tmp_path):
    for averaging in (0.0, 2.0):
        out = tmp_path / str(averaging)
        small = {
            "embedding_dim": 8,
            "attention_dim": 8,
            "num_epochs": 2,
            "averaging": averaging,
            "initial_vectors": "random",
        }
        result = train(planted, TrainConfig(**small), out)
        kept = evaluate(Run.open(out).load_model(), planted.valid, exclude_history=False)
        assert kept.to_json() == result.valid.to_json()
    weights = [Run.open(tmp_path / name).load_model().item_vectors_ND() for name in ("0.0", "2.0")]
    assert not torch.equal(*weights)
