"""The sum against negatives by compiled code is what PyTorch's operations give."""

import platform

import pytest
import torch
from compiled import both, spread

import re4.training.kernels
from re4.training.kernels.precision import arithmetic
from re4.training.losses.accidental_hits import AccidentalHits
from re4.training.losses.fused_softmax import fused_softmax_sum

pytestmark = pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here")


@pytest.fixture(autouse=True, params=["", "-mno-amx-bf16"])
def _tiles(request, native_alone, monkeypatch):
    """With the processor's tiles, where it has any, or without."""
    if request.param and platform.machine() != "x86_64":
        pytest.skip("no such processor")
    monkeypatch.setattr(
        re4.training.kernels, "_FLAGS", (*re4.training.kernels._FLAGS, *filter(None, [request.param]))
    )


def examples(*, num_examples, num_rivals, num_negatives, dim=64, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_own = num_examples + 3
    hit_examples_P = torch.randint(num_examples, (num_own,), generator=generator).sort().values
    return {
        "rivals_BKD": scale * torch.randn(num_examples, num_rivals, dim, generator=generator),
        "target_scores_B": 3 * torch.randn(num_examples, generator=generator),
        "vectors_MD": scale * torch.randn(num_negatives, dim, generator=generator),
        "corrections_M": None,
        "hits": AccidentalHits(hit_examples_P, torch.randint(num_negatives, (num_own,), generator=generator)),
        "hardness": 0.0,
    }


def check_alike(monkeypatch, given):
    """Alike to float32's rounding; with tiles to 2^-16 of a score's terms: rivals that near may swap."""
    compiled, plain = both(monkeypatch, given, fused_softmax_sum)
    is_exact = any(flag.startswith("-mno-a") for flag in re4.training.kernels._FLAGS)
    rounding = 2e-6 if is_exact else 2e-4
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.dtype == theirs.dtype
        scale = float(theirs.abs().max())
        distance = float(
            torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs).clamp_min(1e-9)
        )
        assert distance <= (rounding if is_exact else 0.05)
        if theirs.dim() == 3:  # the rivals' gradients: whichever has it, the sum is the same
            ours, theirs = ours.sum(dim=1), theirs.sum(dim=1)
        if is_exact or theirs.dim() < 2 or len(theirs) == len(given["rivals_BKD"]):
            torch.testing.assert_close(ours, theirs, rtol=10 * rounding, atol=rounding * scale + 1e-7)


@pytest.mark.parametrize("num_rivals", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize(
    ("num_examples", "num_negatives"), [(1, 1), (15, 5), (16, 23), (17, 1000), (300, 64)]
)
def test_same_sum_and_gradients(monkeypatch, num_examples, num_rivals, num_negatives):
    check_alike(
        monkeypatch,
        examples(num_examples=num_examples, num_rivals=num_rivals, num_negatives=num_negatives),
    )


@pytest.mark.parametrize("dim", [16, 48, 128])
def test_other_widths(monkeypatch, dim):
    check_alike(monkeypatch, examples(num_examples=20, num_rivals=4, num_negatives=200, dim=dim))


@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86 processors")
def test_processors_that_can_less(monkeypatch, flag):
    monkeypatch.setattr(re4.training.kernels, "_FLAGS", (*re4.training.kernels._FLAGS, flag))
    for num_rivals in (1, 3, 4, 5):
        check_alike(monkeypatch, examples(num_examples=20, num_rivals=num_rivals, num_negatives=200))


def test_products_by_torch_go_on_beside_tiles_of_ours(monkeypatch):
    """On processors with tiles both set them up, on the same threads."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    given = examples(num_examples=40, num_rivals=4, num_negatives=300)
    with arithmetic(torch.device("cpu"), bf16=True):
        product, total = left @ right, fused_softmax_sum(**given)[0]
        for _ in range(3):
            assert torch.equal(left @ right, product)
            assert torch.equal(fused_softmax_sum(**given)[0], total)


def test_corrections_of_drawn_negatives(monkeypatch):
    given = examples(num_examples=40, num_rivals=4, num_negatives=300)
    given["corrections_M"] = torch.randn(300, generator=torch.Generator().manual_seed(1))
    check_alike(monkeypatch, given)


def test_of_rivals_that_tie_the_first_has_the_gradient(monkeypatch):
    given = examples(num_examples=20, num_rivals=5, num_negatives=100)
    given["rivals_BKD"][:, 1] = given["rivals_BKD"][:, 3] = given["rivals_BKD"][:, 0]
    check_alike(monkeypatch, given)
    assert not fused_softmax_sum(**given)[1][:, [1, 3]].any()


def test_scores_of_any_size(monkeypatch):
    for scale in (1e-3, 1.0, 2.0):
        check_alike(monkeypatch, examples(num_examples=20, num_rivals=4, num_negatives=100, scale=scale))


def test_the_target_among_all_negatives_leaves_nothing(monkeypatch):
    given = examples(num_examples=1, num_rivals=2, num_negatives=1)
    total, *gradients = fused_softmax_sum(**given)
    assert float(total) == 0.0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_shows_in_the_sum(monkeypatch, broken):
    given = examples(num_examples=20, num_rivals=4, num_negatives=100)
    given["hits"] = AccidentalHits(*[torch.zeros(0, dtype=torch.int64)] * 2)
    given["vectors_MD"][7, 3] = broken
    assert not torch.isfinite(fused_softmax_sum(**given)[0])


def test_bits_do_not_depend_on_the_moment():
    given = examples(num_examples=600, num_rivals=4, num_negatives=500)
    first, second = fused_softmax_sum(**given), fused_softmax_sum(**given)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_what_is_not_in_one_piece(monkeypatch):
    given = examples(num_examples=20, num_rivals=4, num_negatives=100)
    strided = {
        name: spread(value) if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    for one, other in zip(fused_softmax_sum(**given), fused_softmax_sum(**strided), strict=True):
        assert torch.equal(one, other)


def test_hard_negatives_and_odd_widths_go_by_torch():
    fused_softmax_sum(**examples(num_examples=4, num_rivals=2, num_negatives=5) | {"hardness": 0.5})
    fused_softmax_sum(**examples(num_examples=4, num_rivals=2, num_negatives=5, dim=8))
    assert not re4.training.kernels._loaded
