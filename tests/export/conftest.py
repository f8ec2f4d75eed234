"""A run that was never trained, and a tiny real one."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from run_samples import (
    FakeRun,
    SmallEncoder,
    converting_once,
    export_small,
    publish_run,
    train_tiny_run,
)

from re4.benchmarks.synthetic.vectors import VectorSpace


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mapped_items(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], np.ndarray]:
    """Synthetic item vectors [N, D], memory-mapped, of a number of items and a width."""

    @cache
    def make(num_items: int, dim: int) -> np.ndarray:
        path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
        VectorSpace(num_items=num_items, embedding_dim=dim).write_items(path)
        return np.load(path, mmap_mode="r")

    return make


@pytest.fixture
def fake_run() -> FakeRun:
    return FakeRun()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch over 30 items, with all backward flows on."""
    torch.set_num_threads(1)
    return train_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle directory with one version, made of an unspoiled fake run."""
    bundles = tmp_path_factory.mktemp("published")
    publish_run(FakeRun(), bundles, index="flat")
    return bundles


@pytest.fixture
def converted_once() -> Iterator[None]:
    """For tests that are not of the conversion itself."""
    with converting_once():
        yield


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder's file, not to be changed."""
    path = tmp_path_factory.mktemp("small") / "encoder.onnx"
    export_small(SmallEncoder(), path)
    return path
