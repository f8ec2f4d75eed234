"""The command itself: its help, its exit codes, and what each verb does not load."""

import subprocess
import sys

import pytest

from re4.cli import VERBS, main


def re4(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "re4.cli", *words], capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def in_process(monkeypatch, capsys):
    """The same without a process, for verbs that leave no trace in one; it need not load PyTorch again."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["re4", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run


def loaded_modules(words):
    """Which modules building the command line for these words loads."""
    code = f"import sys; from re4.cli import build_app; build_app({words!r}); print('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_help_lists_every_verb():
    shown = re4("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert verb.split()[0] in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, in_process):
    shown = in_process(*verb.split(), "--help")
    assert shown.returncode == 0
    assert "Usage: re4" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize("words", [["serve"], ["info"], ["retrieve"], ["export"], ["train"], ["--help"]])
def test_building_the_command_line_loads_nothing_heavy(words):
    heavy = {"torch", "faiss", "onnxruntime", "polars", "grpc", "numpy"}
    assert not loaded_modules(words) & heavy


def test_serve_and_its_kin_load_nothing_offline():
    for verb in ("serve", "info", "retrieve"):
        assert not loaded_modules([verb]) & {"training", "export", "benchmarks"}


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-verb"],
        ["train"],
        ["train", "DATA"],
        ["train", "DATA", "--out", "RUN", "--num-interests", "many"],
        ["train", "DATA", "--out", "RUN", "--num-interests", "0"],
        ["train", "DATA", "--out", "RUN", "--model", "none"],
        ["evaluate", "RUN", "--split", "train"],
        ["data", "fetch", "ml-100k"],
        ["serve", "--bundles"],
    ],
    ids=" ".join,
)
def test_wrong_words_exit_with_2_and_no_stack_trace(words, tmp_path, in_process, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = in_process(*words)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "absent", "--out", "RUN"], "absent"),
        (["evaluate", "absent"], "re4 train DATA --out absent"),
        (["export", "absent", "--bundles", "BUNDLES"], "re4 train DATA --out absent"),
        (["data", "prepare", "--events", "absent.csv", "--out", "DATA"], "absent.csv"),
        (["serve", "--bundles", "absent", "--address", "127.0.0.1:0"], "absent"),
        (["info", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        (["bench", "events", "--out", "/dev/null/log.parquet", "--num-events", "1000"], "/dev/null"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_failures_exit_with_1_name_the_thing_and_leave_nothing(
    words, message, tmp_path, in_process, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # A server takes over the signals and the log of its process.
    done = re4(*words) if words[0] == "serve" else in_process(*words)
    assert done.returncode == 1, done
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_version():
    assert re4("--version").stdout.startswith("re4 ")
