"""The sum of distances of reconstructions by compiled code is what PyTorch's operations give."""

import platform

import pytest
import torch
from compiled import both, spread

import re4.training.kernels
from re4.training.losses.fused_reconstruction import fused_reconstruction_sum

pytestmark = [
    pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native_alone"),
]


def users(*, lengths, num_interests, length, dim=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor(lengths)

    def normal(scale, *shape):
        return scale * torch.randn(*shape, generator=generator)

    is_valid_BL = torch.arange(length) < lengths_B[:, None]
    positives_BKL = torch.rand(len(lengths), num_interests, length, generator=generator) < 0.4
    given = {
        "interests_BKD": normal(0.5, len(lengths), num_interests, dim),
        "history_vectors_BLD": normal(0.3, len(lengths), length, dim),
        "positives_BKL": positives_BKL & is_valid_BL[:, None],
        "lengths_B": lengths_B,
    }
    decoder = (
        normal(0.1, length * width, dim),
        normal(0.1, length * width),
        normal(0.1, length * dim, dim),
        normal(0.1, length * dim),
        normal(0.2, length, width),
    )
    return given, decoder


def reconstructed(*, decoder, interests_BKD, history_vectors_BLD, **rest):
    return fused_reconstruction_sum(interests_BKD, history_vectors_BLD, *decoder, **rest)


@pytest.mark.parametrize("num_interests", [1, 2, 3, 8, 17])
@pytest.mark.parametrize(
    "lengths", [[1], [5], [20] * 3, [20, 19, 7, 4, 1, 1], [1, 20, 1], [9] * 40, [3, 2, 2, 1] * 50]
)
def test_reconstructions_are_the_same(monkeypatch, lengths, num_interests):
    given, decoder = users(lengths=lengths, num_interests=num_interests, length=max(lengths))
    check_distances_alike(monkeypatch, given | {"decoder": decoder})


@pytest.mark.parametrize(("dim", "width"), [(16, 48), (80, 16), (128, 64), (64, 48), (32, 96)])
def test_reconstructions_of_other_widths(monkeypatch, dim, width):
    given, decoder = users(lengths=[7, 6, 2], num_interests=4, length=9, dim=dim, width=width)
    check_distances_alike(monkeypatch, given | {"decoder": decoder})


@pytest.mark.parametrize("flag", ["-mno-amx-bf16", "-mno-avx512f", "-mno-avx"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86 processors")
def test_reconstructions_where_a_processor_can_less(monkeypatch, flag):
    monkeypatch.setattr(re4.training.kernels, "_FLAGS", (*re4.training.kernels._FLAGS, flag))
    given, decoder = users(lengths=[20, 13, 6], num_interests=5, length=20)
    check_distances_alike(monkeypatch, given | {"decoder": decoder})


def test_reconstructions_of_what_is_not_in_one_piece():
    given, decoder = users(lengths=[20, 13, 6], num_interests=5, length=20)
    strided = {name: spread(value) for name, value in given.items()}
    one = reconstructed(decoder=decoder, **given)
    other = reconstructed(decoder=tuple(map(spread, decoder)), **strided)
    for ours, theirs in zip((one[0], *one[1]), (other[0], *other[1]), strict=True):
        assert torch.equal(ours, theirs)


def test_no_positives_no_distance(monkeypatch):
    given, decoder = users(lengths=[20, 13, 6], num_interests=5, length=20)
    given["positives_BKL"][:] = False
    total, gradients = reconstructed(decoder=decoder, **given)
    assert float(total) == 0.0
    assert not any(gradient.any() for gradient in gradients)


def check_distances_alike(monkeypatch, given):
    (ours, our_gradients), (theirs, their_gradients) = both(monkeypatch, given, reconstructed)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()) + 1e-7)
