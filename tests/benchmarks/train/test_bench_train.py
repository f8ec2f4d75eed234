"""`re4 bench train` measures real steps, counts the arithmetic that they owe, and compares like with like."""

import json

import numpy as np
import pytest
import torch
from planted_tastes import write_planted

from re4.benchmarks.train.cli import train
from re4.benchmarks.train.measure import measure, owed_gflop
from re4.benchmarks.train.options import PRESETS, TrainOptions
from re4.benchmarks.train.textbook_step import TextbookRe4
from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives

BATCH = 256


@pytest.fixture(autouse=True)
def smaller_batches(monkeypatch):
    for name, settings in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, {**settings, "batch_size": BATCH})


def test_the_arithmetic_owed_by_hand():
    """One user, one position, one interest, no flows: the products can be counted."""
    config = TrainConfig(
        num_interests=1,
        embedding_dim=2,
        attention_dim=3,
        negatives="uniform",
        num_negatives=5,
        contrast_weight=0,
        attend_weight=0,
        construct_weight=0,
    ).resolve(100)
    products = 2 * 3 + 3 + 2 + 2 * 2 + 5 * 2  # W1, w, weighted sum, W2, negatives
    assert owed_gflop(config, np.array([1]), 100) == pytest.approx(3 * 2 * products / 1e9)


def test_an_interest_that_lost_owes_nothing_back():
    settings = {"negatives": "uniform", "num_negatives": 5, "embedding_dim": 2, "num_interests": 4}
    served, chosen = (
        owed_gflop(TrainConfig(**settings, negative_scores=whose).resolve(100), np.array([1]), 100)
        for whose in ("served", "chosen")
    )
    products = 3 * 5 * 2  # of the three that lost, forward alone
    assert served - chosen == pytest.approx(2 * products / 1e9)


def bench(capsys, **options):
    defaults = {"preset": "authors", "num_items": 500, "num_steps": 2, "num_threads": 1}
    train(**{**defaults, "precision": "float32", "as_json": True, **options})
    return json.loads(capsys.readouterr().out)


def test_measures_and_stays_below_the_floor(capsys):
    result = bench(capsys, preset="default")
    assert 0 < result["examples_per_second"] < result["floor_examples_per_second"]
    assert result["share_of_floor"] == pytest.approx(
        result["examples_per_second"] / result["floor_examples_per_second"]
    )
    assert 0 < result["input_share"] < 1
    assert result["textbook"] is None


def test_beside_a_textbook_step(capsys):
    textbook = bench(capsys, against="textbook")["textbook"]
    assert textbook["ratio"] > 0
    assert textbook["examples_per_second"] == pytest.approx(BATCH * 1000 / textbook["step_ms"])
    with pytest.raises(UsageError, match="--preset default"):
        bench(capsys, preset="default", against="textbook")


def test_on_a_data_set(capsys, tmp_path):
    dataset = write_planted(tmp_path / "data")
    assert bench(capsys, preset="default", data=dataset.path)["num_items"] == dataset.num_items
    with pytest.raises(UsageError, match="--full-histories"):
        bench(capsys, data=dataset.path, full_histories=True)


def test_full_histories_are_full():
    options = TrainOptions(
        num_items=300, num_steps=1, num_threads=1, precision="float32", full_histories=True
    )
    assert measure(options)["mean_history_length"] == pytest.approx(20, rel=0.01)


def test_the_figures_are_shown_to_people_as_well(capsys):
    train(num_items=500, num_steps=1, num_threads=1, precision="float32", against="textbook")
    shown = capsys.readouterr().out
    assert "training steps, preset authors, float32" in shown
    assert "textbook ratio" in shown


def test_the_textbook_step_is_the_same_work():
    """Every loss and every gradient, from the same weights, examples, negatives and pairs of users."""
    small = {"embedding_dim": 6, "attention_dim": 9, "batch_size": 12, "num_interests": 3}
    config = TrainConfig(**{**PRESETS["authors"], **small}).resolve(40)
    torch.manual_seed(1)
    ours, textbook = MultiInterestModel(config, 40).double(), TextbookRe4(config, 40).double()
    textbook.load_state_dict(
        {
            name.rpartition("encoder.")[2].rpartition("reconstruct.")[2]: value
            for name, value in ours.state_dict().items()
        }
    )
    random = np.random.default_rng(0)
    batch = Batch(
        rows_BL=torch.from_numpy(random.integers(0, 40, (12, 20))),
        lengths_B=torch.from_numpy(np.sort(random.integers(1, 21, 12))[::-1].copy()),
        targets_B=torch.from_numpy(random.integers(0, 40, 12)),
    )
    negatives_M = torch.from_numpy(random.integers(0, 40, 15))
    losses = ours.losses(
        batch, Negatives(rows_M=negatives_M, correction=None), torch.Generator().manual_seed(4)
    )
    losses.total.backward()
    terms = textbook.terms(batch, negatives_M, torch.Generator().manual_seed(4))
    textbook.total(terms).backward()
    assert terms.keys() == losses.terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value.detach(), losses.terms[name], rtol=1e-10, atol=0)
    table_ND = torch.zeros(40, 6, dtype=torch.float64)
    table_ND[losses.touched.rows_R] = losses.touched.gradient_RD
    gradients = {
        name.split(".", 1)[1]: each.grad for name, each in ours.named_parameters() if each.requires_grad
    }
    for name, parameter in textbook.named_parameters():
        expected = table_ND if name == "item_embedding.weight" else gradients[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=1e-12)
