"""Attention by compiled code is what PyTorch's operations and autograd give, alone and within a model."""

import platform

import pytest
import torch
from compiled import both, spread

import re4.training.kernels
from re4.training.config import TrainConfig
from re4.training.data.batches import Batch
from re4.training.encoders import build_encoder
from re4.training.model.model import MultiInterestModel
from re4.training.samplers.sampler import Negatives

pytestmark = [
    pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native_alone"),
]

LENGTHS = [[1], [5], [7, 1], [20, 19, 7, 4, 1, 1], [1, 20, 1], [9] * 40]


def users(lengths, *, num_interests=4, dim=64, width=256, positions=True):
    """Histories, with numbers on their padding too, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    lengths_B, length = torch.tensor(lengths), max(lengths)
    return {
        "history_vectors_BLD": normal(len(lengths), length, dim),
        "lengths_B": lengths_B,
        "gradient_BKL": normal(len(lengths), num_interests, length),
        "W1_HD": normal(width, dim) * dim**-0.5,
        "w_KH": normal(num_interests, width) * width**-0.5,
        "positions_LD": normal(length + 2, dim) if positions else None,
    }


def attended(*, history_vectors_BLD, lengths_B, gradient_BKL, W1_HD, w_KH, positions_LD):
    """The logarithm of the attention, 0 for minus infinity, and its gradients."""
    (num_interests, width), dim = w_KH.shape, W1_HD.shape[1]
    config = TrainConfig(
        embedding_dim=dim,
        attention_dim=width,
        num_interests=num_interests,
        position=positions_LD is not None,
        max_history_length=22 if positions_LD is None else len(positions_LD),
    )
    encoder = build_encoder(config.resolve(100)).train()
    given = {"W1.weight": W1_HD, "w.weight": w_KH, "position": positions_LD}
    encoder.load_state_dict({name: value for name, value in given.items() if value is not None}, strict=False)
    tracked = [history_vectors_BLD.detach().clone().requires_grad_(), encoder.W1.weight, encoder.w.weight]
    if positions_LD is not None:
        tracked.append(encoder.position)
    log_attention_BKL = encoder.log_attention(tracked[0], lengths_B)
    is_padding_B1L = (torch.arange(log_attention_BKL.shape[2]) >= lengths_B[:, None])[:, None]
    assert torch.equal(log_attention_BKL == -torch.inf, is_padding_B1L.expand_as(log_attention_BKL))
    valid_BKL = log_attention_BKL.masked_fill(is_padding_B1L, 0)
    return valid_BKL.detach(), *torch.autograd.grad(valid_BKL, tracked, gradient_BKL)


def check_alike(monkeypatch, given):
    for ours, theirs in zip(*both(monkeypatch, given, attended), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()) + 1e-6)


@pytest.mark.parametrize("num_interests", [1, 3, 8, 9])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_same_attention_and_gradients(monkeypatch, lengths, num_interests):
    check_alike(monkeypatch, users(lengths, num_interests=num_interests))


@pytest.mark.parametrize(("dim", "width"), [(16, 48), (80, 16), (64, 48), (32, 96)])
def test_other_widths_without_positions(monkeypatch, dim, width):
    check_alike(monkeypatch, users([7, 6, 2], dim=dim, width=width, positions=False))


@pytest.mark.parametrize("flag", ["-mno-amx-bf16", "-mno-avx512f", "-mno-avx"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86 processors")
def test_where_a_processor_can_less(monkeypatch, flag):
    monkeypatch.setattr(re4.training.kernels, "_FLAGS", (*re4.training.kernels._FLAGS, flag))
    check_alike(monkeypatch, users([20, 13, 6]))


def test_attention_on_one_position_alone(monkeypatch):
    """Logits as far apart as floats allow: all others have a share of 0."""
    given = users([7, 3])
    given["w_KH"] *= 1e4
    check_alike(monkeypatch, given)


def test_padding_has_no_gradient_and_counts_for_nothing():
    given = users([7, 3, 2])
    _, of_history_BLD, *_ = attended(**given)
    assert not of_history_BLD[1, 3:].any()
    other = given | {"history_vectors_BLD": given["history_vectors_BLD"].clone()}
    other["history_vectors_BLD"][1, 3:] = torch.nan
    for ours, theirs in zip(attended(**given), attended(**other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_shows(broken):
    given = users([7, 3, 2])
    given["w_KH"][1, 5] = broken
    assert not attended(**given)[0].isfinite().all()


def test_what_is_not_in_one_piece():
    given = users([20, 13, 6])
    names = ["history_vectors_BLD", "lengths_B", "gradient_BKL"]
    strided = given | {name: spread(given[name]) for name in names}
    for one, other in zip(attended(**given), attended(**strided), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model", ["re4", "comirec-sa"])
def test_a_model_has_the_same_losses_and_gradients(monkeypatch, model):
    """All compiled code together: attention, negatives and the three flows."""
    generator = torch.Generator().manual_seed(0)
    num_items, size = 200, 50
    batch = Batch(
        rows_BL=torch.randint(num_items, (size, 12), generator=generator),
        lengths_B=torch.randint(1, 13, (size,), generator=generator).sort(descending=True).values,
        targets_B=torch.randint(num_items, (size,), generator=generator),
    )
    negatives = Negatives(rows_M=torch.randint(num_items, (300,), generator=generator), correction=None)
    config = TrainConfig(
        model=model,
        embedding_dim=32,
        attention_dim=64,
        num_interests=3,
        construct_dim=32,
        max_history_length=12,
    )

    def losses():
        torch.manual_seed(0)
        trained = MultiInterestModel(config.resolve(num_items), num_items).train()
        found = trained.losses(batch, negatives, torch.Generator().manual_seed(1))
        found.total.backward()
        gradients = [parameter.grad for parameter in trained.parameters() if parameter.requires_grad]
        return [*found.terms.values(), *gradients, found.touched.vectors_RD.grad]

    for ours, theirs in zip(*both(monkeypatch, {}, losses), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) + 1e-7)
