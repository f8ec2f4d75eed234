"""Small cases for the model's tests, and the import of the NumPy reference beside this file."""

import sys
from pathlib import Path

import pytest
import torch
from planted_tastes import write_planted

import re4.training.kernels
from re4.training.data.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def native_alone(monkeypatch, tmp_path_factory):
    """Compiled code is kept for the tests alone, and none is loaded yet."""
    monkeypatch.setattr(re4.training.kernels, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "native"))


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Dataset:
    """A data set whose users have two planted tastes each, with string ids."""
    return write_planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="session")
def small_options():
    """Options of a model that trains on the planted data in a few seconds."""
    return {
        "embedding_dim": 16,
        "attention_dim": 32,
        "num_interests": 2,
        "construct_dim": 8,
        "batch_size": 256,
        "learning_rate": 0.01,
        "num_epochs": 3,
    }
