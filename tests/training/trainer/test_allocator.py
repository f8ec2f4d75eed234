"""Training keeps the memory of a step for the next one."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from re4.training.trainer.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    pieces = [torch.ones(1000, 1024) for _ in range(10)]  # of 4 MB
    return sum(float(piece[0, 0]) for piece in pieces)

for _ in range(10):  # until the heap has found its shape
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    done = subprocess.run([sys.executable, "-c", STEPS, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory its own way")
def test_a_step_finds_the_memory_of_the_one_before():
    assert page_faults("given back") > 1000
    assert page_faults("kept") < 100
