"""The functions behind the subcommands, called from Python."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from re4.common.errors import UsageError
from re4.training import api, cli
from re4.training.data import cli as data_cli
from re4.training.data.prepare import prepare_data
from re4.training.run.run import Run


def test_a_notebook_trains_and_evaluates_without_a_printed_line(planted, small_options, tmp_path, capfd):
    options = {**small_options, "num_epochs": 1}
    result = api.train(planted, tmp_path / "run", device="cpu", **options)
    assert (result.best_epoch, result.num_epochs) == (0, 1), "the start finds everything here"
    test = api.evaluate(str(tmp_path / "run"))
    without_history = api.evaluate(tmp_path / "run", exclude_history=True, data=planted.path)
    kept = Run.open(tmp_path / "run").evaluation()
    assert kept["test"] == test.to_json()
    assert kept["test_history_excluded"] == without_history.to_json()
    later = api.train(str(planted.path), str(tmp_path / "later"), from_run=tmp_path / "run", device="cpu")
    assert later.num_epochs == 1, "settings of the earlier run"
    assert capfd.readouterr() == ("", "")


def test_an_unknown_hyper_parameter_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown num_interest; .* Did you mean num_interests"):
        api.train(tmp_path, tmp_path / "run", num_interest=4)


@pytest.mark.parametrize(
    ("function", "subcommand"),
    [
        (api.train, cli.train),
        (api.resume, cli.resume),
        (api.evaluate, cli.evaluate),
        (api.report, cli.report),
        (prepare_data, data_cli.prepare),
    ],
)
def test_functions_have_the_defaults_of_their_subcommands(function, subcommand) -> None:
    options = inspect.signature(subcommand).parameters
    # The command refuses options that do not fit the format: it must know which ones were given.
    filled_in = (
        {"events", "min_events", "max_user_events", "split", "seed", "engine"}
        if function is prepare_data
        else ()
    )
    for name, parameter in inspect.signature(function).parameters.items():
        if name in options and name not in filled_in:
            assert parameter.default == options[name].default, name


def test_an_import_changes_no_other_library():
    script = """
import pkgutil, signal, sys, warnings
import torch, numpy, polars

def state():
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return [
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.random.initial_seed(), torch.backends.mkldnn.matmul.fp32_precision,
        numpy.geterr(), list(warnings.filters), signals,
    ]

before = state()
import re4.training
for module in pkgutil.walk_packages(re4.training.__path__, "re4.training."):
    if not module.name.startswith("re4.training.distributed."):  # it needs TorchRec
        __import__(module.name)
sys.exit(state() != before)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
