"""Write `locks/`: the versions of `constraints.txt` with the hashes of their files.

    make lock       after a change of pyproject.toml or constraints.txt

uv resolves for every supported version of Python and every platform at once.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
EXTRAS = {
    "cpu": ("cpu", "dev"),
    "gpu": ("gpu", "dev"),
    "docs": ("docs",),
    "fuzz": ("fuzz",),
    "audit": ("audit",),
}
"""The extras of each lock file. Beside them, `pip.txt` has what builds packages, `torch.txt` torch alone,
`cuda.txt` what only its build for CUDA needs, and `torchrec.txt` TorchRec for CPUs."""
TORCHREC = ("torchrec", "fbgemm-gpu-cpu", "tensordict", "pyvers", "pyre-extensions", "typing-inspect")
"""TorchRec, FBGEMM's build for CPUs, and what both import beside the packages of the other locks. TorchRec
itself asks for FBGEMM's build for CUDA, so its dependencies are listed."""

_HEADER = (
    "# Written by `make lock`; do not edit. pip --require-hashes installs nothing else than these files.\n"
)
_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
_CPU_BUILDS = {
    "torch": (
        "981442fab184a8791f7724dda9196ffa723bb038c6059d1b04b5f80196e746a6",
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
    )
}
"""Hashes of builds for the CPU, 2.13.0+cpu on Linux (x86-64): the one for Python 3.11 that pip takes from a
folder of the machine (`find-links`), where it has one; those of PyTorch's own index for Python 3.11, 3.12 and
3.13."""


def main() -> int:
    """Write all files."""
    LOCKS.mkdir(exist_ok=True)
    torch = _resolve("torch")
    cuda = {name: text for name, text in torch.items() if _CUDA.fullmatch(name)}
    _write("pip", _resolve("pip\nsetuptools"))
    _write("cuda", cuda)
    _write("torch", {"torch": torch["torch"]})
    _write("torchrec", _resolve("\n".join(TORCHREC), has_dependencies=False))
    for name, extras in EXTRAS.items():
        packages = _resolve(*extras, is_project=True, python="3.11.5" if name == "docs" else "3.11")
        _write(name, {package: text for package, text in packages.items() if package not in cuda})
    return 0


def _resolve(
    *names: str, is_project: bool = False, has_dependencies: bool = True, python: str = "3.11"
) -> dict[str, str]:
    """Return the lines of each package: of requirements, or of extras of this project."""
    words = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        python,
        "--generate-hashes",
    ]
    words += [] if has_dependencies else ["--no-deps"]
    words += ["--no-header", "--no-annotate", "--no-emit-index-url", "--constraint", "constraints.txt"]
    words += ["pyproject.toml", *(f"--extra={name}" for name in names)] if is_project else ["-"]
    uv = [str(Path(sys.executable).with_name("uv")), *words[1:]]
    done = subprocess.run(uv, cwd=ROOT, input="\n".join(names), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(names)}: {done.stderr}")
    packages: dict[str, str] = {}
    for text in re.findall(r"^\S.*\n(?: .*\n)*", done.stdout, re.MULTILINE):
        name = text.partition("==")[0]
        hashes = "".join(f" \\\n    --hash=sha256:{each}" for each in _CPU_BUILDS.get(name, ()))
        packages[name] = packages.get(name, "") + text.rstrip("\n") + hashes + "\n"
    return packages


def _write(name: str, packages: dict[str, str]) -> None:
    (LOCKS / f"{name}.txt").write_text(_HEADER + "".join(packages.values()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
