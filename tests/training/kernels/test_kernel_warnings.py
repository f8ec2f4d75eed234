"""The C kernels compile without a warning, for CPUs with and without AVX-512 and AMX."""

import platform
import subprocess
from pathlib import Path

import pytest

from re4.bundle.scoring import rescoring
from re4.common import native_code
from re4.common.native_code import compiler
from re4.serving.retrieval import live_items
from re4.training import kernels

pytestmark = pytest.mark.skipif(not kernels.has_kernels(), reason="there is no C compiler here")

FOLDER = Path(kernels.__file__).parent
CONSTANTS = {
    "attention.c": [{"DIM": 64, "WIDTH": 256, "HEADS": 4}, {"DIM": 16, "WIDTH": 32, "HEADS": 1}],
    "fused_reconstruction.c": [{"DIM": 64, "WIDTH": 64}, {"DIM": 48, "WIDTH": 16}],
    "fused_softmax.c": [{"DIM": 64, "RIVALS": rivals} for rivals in (1, 2, 4, 7, 8)]
    + [{"DIM": 48, "RIVALS": 4}],
    "reattend.c": [{"DIM": 64}],
    "recontrast.c": [{"DIM": 64}, {"DIM": 16}],
    "row_adam.c": [{"DIM": 64}],
}
"""Every kernel with the constants that the loader gives it, in the variants that its conditions make."""
SCANS = {
    "list_scan.c": Path(native_code.__file__).parent,
    "best_rescored.c": Path(rescoring.__file__).parent,
    "exact_scan.c": Path(live_items.__file__).parent,
}
CPUS = [["-march=native"]]
if platform.machine() == "x86_64":
    CPUS = [["-march=x86-64-v3"], ["-march=x86-64-v4"], ["-march=x86-64-v4", "-mamx-tile", "-mamx-bf16"]]


def test_every_kernel_is_compiled_here():
    assert {file.name for file in FOLDER.glob("*.c")} == set(CONSTANTS)


@pytest.mark.parametrize("cpu", CPUS, ids=" ".join)
@pytest.mark.parametrize("source", [*CONSTANTS, *(SCANS if platform.machine() == "x86_64" else [])])
def test_no_warning(source, cpu, tmp_path):
    folder = SCANS.get(source, FOLDER)
    flags = [flag for flag in kernels._FLAGS if not flag.startswith("-march")]
    assert {"-Wall", "-Wextra"} <= set(flags)
    for number, constants in enumerate(CONSTANTS.get(source, [{}])):
        if number and number % len(CPUS) != CPUS.index(cpu):
            continue  # the first constants are compiled for all CPUs, and the others for one in turn
        defines = [f"-D{name}={value}" for name, value in constants.items()]
        command = [
            compiler(),
            folder / source,
            *flags,
            "-Werror",
            *cpu,
            *defines,
            f"-I{Path(native_code.__file__).parent}",
            "-o",
            tmp_path / "a.so",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
