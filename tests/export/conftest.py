"""A run that was never trained, and a tiny real one."""

from pathlib import Path

import pytest
import torch
from run_samples import FakeRun, SmallEncoder, export_small, train_tiny_run

from export.exporter import publish_run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder's file, not to be changed."""
    path = tmp_path_factory.mktemp("small") / "encoder.onnx"
    export_small(SmallEncoder(), path)
    return path
