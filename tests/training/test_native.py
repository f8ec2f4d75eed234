"""Compiled code gives what PyTorch's operations give; where there is no compiler, they do the work."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import training.native
from training.against_negatives import sum_against_negatives

pytestmark = pytest.mark.skipif(not training.native.is_native(), reason="there is no C compiler here")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing is compiled yet."""
    monkeypatch.setattr(training.native, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def examples(*, num_examples, num_rivals, num_negatives, dim=64, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_own = num_examples + 3
    own_P = torch.randint(num_examples, (num_own,), generator=generator).sort().values
    return {
        "rivals_BKD": scale * torch.randn(num_examples, num_rivals, dim, generator=generator),
        "target_scores_B": 3 * torch.randn(num_examples, generator=generator),
        "vectors_MD": scale * torch.randn(num_negatives, dim, generator=generator),
        "corrections_M": None,
        "own": (own_P, torch.randint(num_negatives, (num_own,), generator=generator)),
        "hardness": 0.0,
    }


def both(monkeypatch, given):
    """Work it out by compiled code, and by PyTorch's operations."""
    compiled = sum_against_negatives(**given)
    assert any(library is not None for library in training.native._loaded.values())
    monkeypatch.setenv("RE4_NATIVE", "0")
    return compiled, sum_against_negatives(**given)


def check_alike(monkeypatch, given):
    for compiled, plain in zip(*both(monkeypatch, given), strict=True):
        assert compiled.dtype == plain.dtype
        torch.testing.assert_close(compiled, plain, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("num_rivals", [2, 3, 4, 5, 8, 9])
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


@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx", "-O0"])
def test_other_processors(monkeypatch, flag):
    monkeypatch.setattr(training.native, "_FLAGS", (*training.native._FLAGS, flag))
    check_alike(monkeypatch, examples(num_examples=20, num_rivals=3, num_negatives=200))


def test_corrections_of_drawn_negatives(monkeypatch):
    given = examples(num_examples=40, num_rivals=4, num_negatives=300)
    given["corrections_M"] = torch.randn(300, generator=torch.Generator().manual_seed(1))
    check_alike(monkeypatch, given)


def test_of_rivals_that_tie_the_first_has_the_gradient(monkeypatch):
    given = examples(num_examples=20, num_rivals=5, num_negatives=100)
    given["rivals_BKD"][:, 1] = given["rivals_BKD"][:, 3] = given["rivals_BKD"][:, 0]
    check_alike(monkeypatch, given)
    assert not sum_against_negatives(**given)[1][:, [1, 3]].any()


def test_scores_of_any_size(monkeypatch):
    for scale in (1e-3, 5.0, 100.0):
        check_alike(monkeypatch, examples(num_examples=20, num_rivals=4, num_negatives=100, scale=scale))
        monkeypatch.delenv("RE4_NATIVE")


def test_the_target_among_all_negatives_leaves_nothing(monkeypatch):
    given = examples(num_examples=1, num_rivals=2, num_negatives=1)
    total, *gradients = sum_against_negatives(**given)
    assert float(total) == 0.0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_shows_in_the_sum(monkeypatch, broken):
    given = examples(num_examples=20, num_rivals=4, num_negatives=100)
    given["own"] = (torch.zeros(0, dtype=torch.int64),) * 2
    given["vectors_MD"][7, 3] = broken
    assert not torch.isfinite(sum_against_negatives(**given)[0])


def test_bits_do_not_depend_on_the_moment():
    given = examples(num_examples=600, num_rivals=4, num_negatives=500)
    first, second = sum_against_negatives(**given), sum_against_negatives(**given)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_hard_negatives_and_single_interests_go_by_torch():
    sum_against_negatives(**examples(num_examples=4, num_rivals=1, num_negatives=5))
    sum_against_negatives(**examples(num_examples=4, num_rivals=2, num_negatives=5) | {"hardness": 0.5})
    sum_against_negatives(**examples(num_examples=4, num_rivals=2, num_negatives=5, dim=8))
    assert not training.native._loaded


def test_compiled_once_whoever_asks(tmp_path):
    script = "from training.native import native; assert native('against_negatives.c', DIM=16, RIVALS=2)"
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", script]), range(3)))
    assert [each.returncode for each in done] == [0, 0, 0]
    (kept,) = (tmp_path / "cache" / "re4").iterdir()
    before = kept.stat().st_mtime_ns
    assert training.native.native("against_negatives.c", DIM=16, RIVALS=2) is not None
    assert kept.stat().st_mtime_ns == before


def test_a_damaged_or_unwritable_cache_is_gone_around(tmp_path):
    assert training.native.native("against_negatives.c", DIM=16, RIVALS=2) is not None
    (kept,) = (tmp_path / "cache" / "re4").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    training.native._loaded.clear()
    assert training.native.native("against_negatives.c", DIM=16, RIVALS=2) is not None


def test_no_place_to_keep_it(tmp_path):
    (tmp_path / "cache").write_text("a file, no folder")
    assert training.native.native("against_negatives.c", DIM=16, RIVALS=2) is not None


def test_what_cannot_be_compiled_is_said_and_done_by_torch(monkeypatch, capsys):
    monkeypatch.setattr(training.native, "_FLAGS", (*training.native._FLAGS, "--no-such-flag"))
    given = examples(num_examples=4, num_rivals=2, num_negatives=5)
    assert torch.isfinite(sum_against_negatives(**given)[0])
    assert "against_negatives.c could not be compiled" in capsys.readouterr().err
    sum_against_negatives(**given)
    assert not capsys.readouterr().err  # said once


def test_no_compiler(monkeypatch):
    training.native._compiler.cache_clear()
    monkeypatch.setenv("CC", str(Path("no-such-compiler")))
    try:
        assert not training.native.is_native()
        assert training.native.native("against_negatives.c", DIM=16, RIVALS=2) is None
    finally:
        training.native._compiler.cache_clear()
