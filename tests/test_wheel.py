"""The wheel holds everything and installs nothing but `re4`, so that a user's own folders are no obstacle."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FOLDERS = ("re4", "training", "export", "bundle", "serving", "protos", "benchmarks")
SUFFIXES = {".py", ".pyi", ".c", ".h", ".j2", ".proto", ".typed"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, which setuptools may write into."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "results", ".venv*", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked. Built without a network."""
    built = tmp_path_factory.mktemp("built")
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    (packed,) = built.glob("*.whl")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a user's project, with packages of our folders' names that must not be imported."""
    for name in {*FOLDERS, "exporting"} - {"re4"}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name}')")
    return tmp_path


def start(wheel: Path, project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in the project: with the wheel and its dependencies, without the checkout."""
    path = os.pathsep.join([str(wheel), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = {**os.environ, "PYTHONPATH": path}
    # Without `site` no editable install adds the checkout.
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def run(wheel: Path, project: Path, *words: str) -> str:
    """Run Python as `start` does, without a failure; return its output."""
    done = start(wheel, project, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_installs_one_top_level_name(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"re4"}


def test_it_holds_every_module_and_data_file(source: Path, wheel: Path) -> None:
    expected = set()
    for folder in FOLDERS:
        place = "" if folder == "re4" else "exporting" if folder == "export" else folder
        files = (path for path in (source / folder).rglob("*") if path.suffix in SUFFIXES)
        expected |= {Path("re4", place, file.relative_to(source / folder)) for file in files}
    found = {path.relative_to(wheel) for path in (wheel / "re4").rglob("*") if path.suffix in SUFFIXES}
    assert found == expected
    assert {path.suffix for path in found} == SUFFIXES


def test_users_folders_of_the_same_names_do_not_matter(wheel: Path, project: Path) -> None:
    shown = run(wheel, project, "-c", "import re4; print(re4.__file__, *map(repr, re4.__all__))")
    assert Path(shown.split()[0]).is_relative_to(wheel)
    names = (
        "re4.training.config re4.exporting.cli re4.serving.cli re4.bundle.layout re4.protos.v1.retrieval_pb2"
    )
    run(wheel, project, "-c", f"import {names.replace(' ', ', ')}; from re4 import RetrievalClient")
    assert "serve" in run(wheel, project, "-m", "re4.cli", "--help")
    assert run(wheel, project, "-m", "re4.cli", "--version") == f"re4 {VERSION}\n"


BLOCK = (
    "import sys\n"
    "for name in {modules!r}:\n    sys.modules[name] = None\n"
    "from re4.cli import main\nsys.argv = ['re4', *{words!r}]\nmain()"
)
CLIENT = (
    "faiss",
    "onnxruntime",
    "torch",
    "polars",
    "onnx",
    "onnxscript",
    "matplotlib",
    "jinja2",
    "safetensors",
)
"""Modules that an installation without extras lacks, beside those of benchmarks."""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["retrieve", "--help"], ["info", "--help"], ["train", "--help"], ["prune", "--help"]],
)
def test_the_client_needs_no_extra(wheel: Path, project: Path, words: list[str]) -> None:
    run(wheel, project, "-c", BLOCK.format(modules=(*CLIENT, "hdrh", "psutil"), words=words))


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["train", "data", "--out", "run"], "train"),
        (["serve", "--bundles", "."], "serve"),
        (["export", "run", "--bundles", "."], "serve"),
        (["histories", "rotate"], "serve"),
        (["inspect", "--bundles", "."], "inspect"),
    ],
)
def test_a_missing_extra_is_one_line(wheel: Path, project: Path, words: list[str], extra: str) -> None:
    (project / "run").mkdir(exist_ok=True)
    (project / "run/config.json").touch()
    done = start(wheel, project, "-c", BLOCK.format(modules=CLIENT, words=words))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: re4 {words[0]} ")
    assert f"re4-retrieval[{extra}]'" in done.stderr
    assert ("re4-retrieval[cpu]" in done.stderr) == (extra != "inspect")
    assert "Traceback" not in done.stderr
