"""`re4 bench train` measures real steps, and counts the arithmetic that they owe."""

import json

import numpy as np
import pytest

from benchmarks.train import PRESETS, _owed_gflop, measure, train
from training.config import TrainConfig


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
    assert _owed_gflop(config, np.array([1]), 100) == pytest.approx(3 * 2 * products / 1e9)


def test_measures_and_stays_below_the_floor(capsys):
    train(preset="default", num_items=500, num_steps=2, num_threads=1, full_histories=False, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["examples_per_second"] < result["floor_examples_per_second"]
    assert result["share_of_floor"] == pytest.approx(
        result["examples_per_second"] / result["floor_examples_per_second"]
    )
    assert 0 < result["input_share"] < 1


def test_full_histories_are_full():
    length = PRESETS["authors"]["max_history_length"]
    result = measure("authors", 300, 1, 1, full_histories=True)
    assert result.mean_history_length == pytest.approx(length, rel=0.01)
