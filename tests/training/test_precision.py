"""Training in bfloat16 products, and on a GPU, learns what training in float32 on a CPU learns."""

from pathlib import Path

import pytest
import torch

from re4.errors import UsageError
from training.config import TrainConfig
from training.data.dataset import Dataset
from training.evaluation import Evaluation
from training.loop import train
from training.precision import is_bf16
from training.run import Run

SMALL = TrainConfig(
    embedding_dim=16,
    attention_dim=32,
    num_interests=2,
    construct_dim=8,
    batch_size=256,
    num_epochs=3,
    learning_rate=0.01,
)


def trained(planted: Dataset, out: Path, **options: str) -> tuple[dict[str, torch.Tensor], Evaluation]:
    valid = train(planted, SMALL, out, **options).valid
    return dict(Run.open(out).load_model().state_dict()), valid


def assert_alike(ours: Evaluation, theirs: Evaluation) -> None:
    assert ours.recall_50 == pytest.approx(theirs.recall_50, abs=0.05)


def test_bf16_learns_the_same_and_leaves_float32_weights(planted: Dataset, tmp_path: Path) -> None:
    weights, exact = trained(planted, tmp_path / "float32", device="cpu", precision="float32")
    rounded_weights, rounded = trained(planted, tmp_path / "bf16", device="cpu", precision="bf16")
    assert all(value.dtype == torch.float32 for value in rounded_weights.values())
    assert any(not torch.equal(weights[name], rounded_weights[name]) for name in weights)
    assert_alike(rounded, exact)


def test_a_cpu_is_left_at_float32_and_other_names_are_refused(planted: Dataset, tmp_path: Path) -> None:
    assert not is_bf16("auto", torch.device("cpu"))
    with pytest.raises(UsageError, match="--precision fp8: auto, float32, bf16"):
        train(planted, SMALL, tmp_path / "run", device="cpu", precision="fp8")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_short_training_on_a_gpu_is_that_of_a_cpu(precision: str, planted: Dataset, tmp_path: Path) -> None:
    _, on_cpu = trained(planted, tmp_path / "cpu", device="cpu", precision="float32")
    _, on_gpu = trained(planted, tmp_path / "gpu", device="cuda", precision=precision)
    assert_alike(on_gpu, on_cpu)
