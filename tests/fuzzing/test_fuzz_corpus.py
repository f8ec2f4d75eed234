"""Every parser takes every input of its corpus, without a fuzzer. `make fuzz` looks for other inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import CORPUS, MAX_INPUT_BYTES, read_corpus, write_corpus
from fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_refuses_or_accepts_every_input(name: str, tmp_path: Path) -> None:
    parse = TARGETS[name](tmp_path)
    inputs = read_corpus(name)
    assert inputs
    for data in inputs:
        assert len(data) <= MAX_INPUT_BYTES, data[:100]
        parse(data)


def test_every_corpus_has_a_parser() -> None:
    assert sorted(file.stem for file in CORPUS.iterdir()) == sorted(TARGETS)


def test_a_python_without_a_fuzzer_is_reported() -> None:
    program = (
        "import importlib.util, runpy, sys; importlib.util.find_spec = lambda name: None; "
        f"sys.argv = ['fuzz.py', '--seconds', '1']; runpy.run_path({str(CORPUS.parent / 'fuzz.py')!r}, "
        "run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing is fuzzed: atheris has no build for Python" in done.stdout


def test_a_corpus_keeps_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.CORPUS", tmp_path)
    inputs = [b"", b"\\n\n\r\x85\x1c", bytes(range(256)), "é\u2028".encode()]
    write_corpus("any", inputs)
    assert sorted(read_corpus("any")) == sorted(inputs)
