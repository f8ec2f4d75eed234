"""C is compiled once and kept; where it cannot be, or there is no compiler, PyTorch does the work."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import re4.training.kernels
from re4.common.native_code import compiler
from re4.training.losses.accidental_hits import AccidentalHits
from re4.training.losses.fused_softmax import fused_softmax_sum

pytestmark = [
    pytest.mark.skipif(not re4.training.kernels.has_kernels(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native_alone"),
]


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "re4"


def test_processes_that_start_together_share_one_compiled_file(own_cache):
    script = "from re4.training.kernels import load_kernel as load; assert load('row_adam.c', DIM=16)"
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", script]), range(3)))
    assert [each.returncode for each in done] == [0, 0, 0]
    (kept,) = own_cache.iterdir()
    before = kept.stat().st_mtime_ns
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert kept.stat().st_mtime_ns == before


def test_a_damaged_cache_file_is_bypassed(own_cache):
    assert re4.training.kernels.load_kernel("fused_softmax.c", DIM=16, RIVALS=2) is not None
    (kept,) = own_cache.iterdir()
    begun = kept.read_bytes()[:100]
    kept.unlink()  # and not cut short: it is mapped
    kept.write_bytes(begun)
    re4.training.kernels._loaded.clear()
    assert re4.training.kernels.load_kernel("fused_softmax.c", DIM=16, RIVALS=2) is not None


def test_no_place_to_keep_it(own_cache):
    own_cache.write_text("a file, no folder")
    assert re4.training.kernels.load_kernel("fused_softmax.c", DIM=16, RIVALS=2) is not None


def test_a_failed_compilation_is_logged_once_and_torch_does_the_work(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(re4.training.kernels, "_FLAGS", (*re4.training.kernels._FLAGS, "--no-such-flag"))
    assert _sum_is_finite()
    assert _sum_is_finite()
    assert caplog.text.count("fused_softmax.c could not be compiled") == 1


def test_no_compiler(monkeypatch):
    compiler.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        assert not re4.training.kernels.has_kernels()
        assert re4.training.kernels.load_kernel("fused_softmax.c", DIM=16, RIVALS=2) is None
    finally:
        compiler.cache_clear()


def _sum_is_finite():
    total, *_ = fused_softmax_sum(
        rivals_BKD=torch.ones(4, 2, 16),
        target_scores_B=torch.ones(4),
        vectors_MD=torch.ones(5, 16),
        corrections_M=None,
        hits=AccidentalHits(torch.arange(4), torch.arange(4)),
        hardness=0.0,
    )
    return bool(total.isfinite())
