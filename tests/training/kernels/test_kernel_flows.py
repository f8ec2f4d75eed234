"""Re-contrast and re-attend by compiled code are what PyTorch's operations and autograd give."""

import pytest
import torch
from compiled import both, spread

import re4.training.kernels
from re4.training.losses.flows.reattend import reattend_sum
from re4.training.losses.flows.recontrast import outside_history, recontrast_sum

pytestmark = [
    pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native_alone"),
]

LENGTHS = [[1], [5], [7, 1], [20, 19, 7, 4, 1, 1], [9] * 40]


def users(lengths, num_interests, dim=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths_B, length = torch.tensor(lengths), max(lengths)
    attention_BKL = torch.randn(len(lengths), num_interests, length, generator=generator)
    is_padding_BL = torch.arange(length) >= lengths_B[:, None]
    log_attention_BKL = attention_BKL.masked_fill(is_padding_BL[:, None], -torch.inf).log_softmax(dim=2)
    rows_BL = torch.randint(30, (len(lengths), length), generator=generator)
    other_B, outside_BL = outside_history(rows_BL, lengths_B, generator)
    contrast = {
        "positives_BKL": log_attention_BKL.exp() > 1 / lengths_B[:, None, None],
        "lengths_B": lengths_B,
        "other_B": other_B,
        "outside_BL": outside_BL,
    }
    tensors = {
        "interests_BKD": torch.randn(len(lengths), num_interests, dim, generator=generator),
        "history_vectors_BLD": 0.5 * torch.randn(len(lengths), length, dim, generator=generator),
    }
    return tensors, contrast, {"log_attention_BKL": log_attention_BKL, "lengths_B": lengths_B}


def with_gradients_of(loss, names):
    def work(**given):
        tracked = {name: given[name].clone().requires_grad_() for name in names}
        value = loss(**given | tracked)
        (3 * value).backward()
        return value.detach(), *(tensor.grad for tensor in tracked.values())

    return work


def contrast(**given):
    return recontrast_sum(temperature=0.1, **given)


CONTRAST = with_gradients_of(contrast, ["interests_BKD", "history_vectors_BLD"])
ATTEND = with_gradients_of(reattend_sum, ["interests_BKD", "history_vectors_BLD", "log_attention_BKL"])


def check_alike(monkeypatch, given, work):
    for ours, theirs in zip(*both(monkeypatch, given, work), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-6)


@pytest.mark.parametrize("num_interests", [1, 2, 8])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dim", [16, 64])
@pytest.mark.parametrize("flow", ["recontrast", "reattend"])
def test_same_sum_and_gradients(monkeypatch, flow, lengths, num_interests, dim):
    tensors, of_contrast, of_attend = users(lengths, num_interests, dim)
    work, others = (CONTRAST, of_contrast) if flow == "recontrast" else (ATTEND, of_attend)
    check_alike(monkeypatch, tensors | others, work)


def test_vectors_of_length_zero(monkeypatch):
    tensors, of_contrast, _ = users([7, 3, 2], 2)
    tensors["interests_BKD"][0, 0] = 0
    tensors["history_vectors_BLD"][1, 0] = 0
    value, *gradients = CONTRAST(**tensors | of_contrast)
    with monkeypatch.context() as without:
        without.setenv("RE4_NATIVE", "0")
        plain, *plain_gradients = CONTRAST(**tensors | of_contrast)
    torch.testing.assert_close(value, plain)
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        # Beside a vector of length zero a gradient is 10^12 times as large as elsewhere.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_is_no_number_shows_in_the_sums():
    for number in (torch.nan, torch.inf):
        tensors, of_contrast, of_attend = users([7, 3, 2], 2)
        tensors["interests_BKD"][1, 0, 5] = number
        assert not CONTRAST(**tensors | of_contrast)[0].isfinite()
        assert not ATTEND(**tensors | of_attend)[0].isfinite()


def test_what_is_not_in_one_piece():
    tensors, of_contrast, of_attend = users([20, 13, 6], 3)
    for work, given in ((CONTRAST, tensors | of_contrast), (ATTEND, tensors | of_attend)):
        strided = {name: spread(value) for name, value in given.items()}
        for one, other in zip(work(**given), work(**strided), strict=True):
            assert torch.equal(one, other)
