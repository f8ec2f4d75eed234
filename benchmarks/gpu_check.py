"""GPU tests and a GPU measurement, where there is a GPU: `make gpu-check`.

    python -m re4.benchmarks.gpu_check

Without a GPU the exit code is 0, and a line states that nothing was checked.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_NUM_ITEMS: Final = 200_000


def has_gpu() -> bool:
    """Return whether an NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True, check=False).returncode == 0


def main() -> int:
    """Run the GPU tests, then a short load on a server with `--device cuda`; return the first failure."""
    if not has_gpu():
        sys.stdout.write("gpu-check: no NVIDIA GPU answers here, so NOTHING was checked\n")
        return 0
    tests = Path(__file__).resolve().parent.parent / "tests"
    testing = [sys.executable, "-m", "pytest", "-m", "gpu", str(tests)]
    if code := subprocess.run(testing, check=False).returncode:
        return code
    with TemporaryDirectory() as scratch:
        synthetic = [sys.executable, "-m", "re4.benchmarks.synthetic.bundle", scratch]
        bench = [sys.executable, "-m", "re4.cli", "bench", "overhead", "--bundles", f"{scratch}/bundles"]
        for command in (
            [*synthetic, "--num-items", str(_NUM_ITEMS), "--index", "ivf"],
            [*bench, "--data", f"{scratch}/data", "--num-rounds", "2", "--seconds", "2", "--device", "cuda"],
        ):
            if code := subprocess.run(command, check=False).returncode:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
