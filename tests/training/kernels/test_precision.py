"""Training in bfloat16 products, and on a GPU, learns what training in float32 on a CPU learns."""

from pathlib import Path

import pytest
import torch

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.data.batches import TrainingBatches
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import Evaluation
from re4.training.kernels.precision import arithmetic, is_bf16
from re4.training.model.model import Losses, MultiInterestModel
from re4.training.run.run import Run
from re4.training.samplers.sampler import Negatives
from re4.training.trainer.loop import train

CPU = torch.device("cpu")
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


def product(*, bf16: bool) -> torch.Tensor:
    left, right = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    with arithmetic(CPU, bf16=bf16):
        return left @ right


def test_bf16_learns_the_same_and_leaves_float32_weights(planted: Dataset, tmp_path: Path) -> None:
    weights, exact = trained(planted, tmp_path / "float32", device="cpu", precision="float32")
    rounded_weights, rounded = trained(planted, tmp_path / "bf16", device="cpu", precision="bf16")
    assert all(value.dtype == torch.float32 for value in rounded_weights.values())
    if not torch.equal(product(bf16=True), product(bf16=False)):  # this processor has the instructions
        assert any(not torch.equal(weights[name], rounded_weights[name]) for name in weights)
    assert_alike(rounded, exact)


@pytest.mark.parametrize("options", [{}, {"negative_scores": "chosen", "model": "comirec-sa"}], ids=str)
def test_bf16_losses_and_gradients_are_close_to_float32(options: dict[str, str], planted: Dataset) -> None:
    exact, exact_gradients = losses_and_gradients(planted, options, bf16=False)
    rounded, rounded_gradients = losses_and_gradients(planted, options, bf16=True)
    for name, value in exact.terms.items():
        assert float(rounded.terms[name]) == pytest.approx(float(value), rel=2e-3), name
    for name, gradient in exact_gradients.items():
        error = (rounded_gradients[name] - gradient).norm() / gradient.norm()
        assert rounded_gradients[name].dtype == torch.float32, name
        assert error < 0.05, name


def losses_and_gradients(
    planted: Dataset, options: dict[str, str], *, bf16: bool
) -> tuple[Losses, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = TrainConfig(num_interests=4, history_dropout=0.0, **options).resolve(planted.num_items)
    model = MultiInterestModel(config, planted.num_items)
    batches = TrainingBatches(planted.train, max_history_length=20, batch_size=256)
    everything = Negatives(rows_M=None, correction=None)
    with arithmetic(CPU, bf16=bf16):
        losses = model.losses(next(batches.epoch([0])), everything, torch.Generator().manual_seed(0))
    losses.total.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return losses, {"items": losses.touched.gradient_RD, **gradients}


def test_products_outside_of_the_losses_stay_exact() -> None:
    before = product(bf16=False)
    with pytest.raises(RuntimeError, match="broken"), arithmetic(CPU, bf16=True):
        raise RuntimeError("broken")
    assert torch.equal(product(bf16=False), before)


def test_a_cpu_is_left_at_float32_and_other_names_are_refused(planted: Dataset, tmp_path: Path) -> None:
    assert not is_bf16("auto", CPU)
    with pytest.raises(UsageError, match="--precision fp8: auto, float32, bf16"):
        train(planted, SMALL, tmp_path / "run", device="cpu", precision="fp8")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_short_training_on_a_gpu_is_that_of_a_cpu(precision: str, planted: Dataset, tmp_path: Path) -> None:
    _, on_cpu = trained(planted, tmp_path / "cpu", device="cpu", precision="float32")
    _, on_gpu = trained(planted, tmp_path / "gpu", device="cuda", precision=precision)
    assert_alike(on_gpu, on_cpu)
