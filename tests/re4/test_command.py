"""The command itself: its help, its exit codes, and the modules that a subcommand does not load."""

import json
import re
import subprocess
import sys

import polars as pl
import pytest

from re4 import prepare_data
from re4.cli import GROUPS, SUBCOMMANDS, main


def re4(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "re4.cli", *words], capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def in_process(monkeypatch, capsys):
    """The same without a process, for subcommands that leave no trace in one; PyTorch is not loaded again."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["re4", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run


def loaded_modules(words):
    """Names of the modules that building the command line for these words loads."""
    code = f"import sys; from re4.cli import build_app; build_app({words!r}); print('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def commands_in(help_text):
    """First words of the lines in the help's boxes of commands."""
    return set(re.findall(r"^│ ([a-z][a-z-]*) ", help_text, re.MULTILINE))


def test_help_lists_every_subcommand(in_process):
    shown = in_process("--help")
    assert shown.returncode == 0
    assert commands_in(shown.stdout) == {subcommand.split()[0] for subcommand in SUBCOMMANDS}
    for group in GROUPS:
        shown = in_process(group, "--help")
        assert commands_in(shown.stdout) == {
            name
            for of_group, _, name in (each.partition(" ") for each in SUBCOMMANDS)
            if of_group == group and name
        }


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_explains_itself(subcommand, in_process):
    shown = in_process(*subcommand.split(), "--help")
    assert shown.returncode == 0
    assert f"Usage: re4 {subcommand}" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize("words", [["serve"], ["info"], ["retrieve"], ["export"], ["train"], ["--help"]])
def test_building_the_command_line_loads_nothing_heavy(words):
    heavy = {"torch", "faiss", "onnxruntime", "polars", "grpc", "numpy"}
    assert not loaded_modules(words) & heavy


def test_serve_info_and_retrieve_load_no_offline_module():
    for subcommand in ("serve", "info", "retrieve"):
        loaded = loaded_modules([subcommand])
        assert "re4.serving" in loaded
        assert not loaded & {"re4.training", "re4.exporting", "re4.benchmarks"}


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-subcommand"],
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


MISSING_PATHS = {
    "train nowhere --out out": "nowhere is not a folder; name the folder that `re4 data prepare --out` wrote",
    "train data --out used": "used exists and is not an empty folder",
    "train data --out out --from nowhere": "There is no run at nowhere",
    "resume nowhere": "There is no run at nowhere",
    "evaluate nowhere": "There is no run at nowhere",
    "evaluate used": "used holds no finished run",
    "report nowhere": "There is no run at nowhere",
    "export nowhere --bundles out": "There is no run at nowhere",
    "rebuild --run nowhere --bundles out": "There is no run at nowhere",
    "rebuild --vectors v.parquet --bundles out": "v.parquet does not exist; check the path",
    "rebuild --run run --catalogue items.csv --bundles out": "items.csv does not exist; check the path",
    "bulk --bundles out --dataset nowhere --out candidates": "nowhere is not a folder",
    "bulk --bundles nowhere --dataset data --out candidates": "nowhere: not a folder that can be read",
    "bench quality nowhere --out out": "nowhere is not a folder",
}


def test_missing_paths_are_reported_before_torch_is_loaded(tmp_path):
    users = [f"u-{user}" for user in range(40) for _ in range(6)]
    events = {"user": users, "item": [f"i-{place % 7}" for place in range(240)], "timestamp": range(240)}
    prepare_data(pl.DataFrame(events), tmp_path / "data", min_events=1)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    code = (
        "import json, sys; sys.modules['torch'] = None\n"
        "from re4.cli import main\n"
        "for line in json.load(sys.stdin):\n"
        "    sys.argv = ['re4', *line.split()]\n"
        "    print('>', line, file=sys.stderr, flush=True)\n"
        "    try: main()\n"
        "    except SystemExit as end: print(f'<{end.code}', file=sys.stderr, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(MISSING_PATHS)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    found = dict(re.findall(r"^> (.*)\n((?:.*\n)*?<\d)$", done.stderr, re.MULTILINE))
    assert set(found) == set(MISSING_PATHS), done.stderr
    for line, message in MISSING_PATHS.items():
        assert message in found[line]
        assert found[line].endswith("<1"), found[line]
