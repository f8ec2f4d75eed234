"""Every parser takes every input of its corpus, without a fuzzer. `make fuzz` looks for other inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import CORPUS, MAX_INPUT_BYTES
from fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_refuses_or_accepts_every_input(name: str, tmp_path: Path) -> None:
    parse = TARGETS[name](tmp_path)
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for file in inputs:
        data = file.read_bytes()
        assert len(data) <= MAX_INPUT_BYTES, file
        parse(data)


def test_every_corpus_has_a_parser() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(TARGETS)


def test_a_python_without_a_fuzzer_is_reported() -> None:
    program = (
        "import importlib.util, runpy, sys; importlib.util.find_spec = lambda name: None; "
        f"sys.argv = ['fuzz.py', '--seconds', '1']; runpy.run_path({str(CORPUS.parent / 'fuzz.py')!r}, "
        "run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing is fuzzed: atheris has no build for Python" in done.stdout
