"""Runs in MLflow, against a recording stand-in for its client."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.run.mlflow_tracking import (
    check_mlflow,
    end_tracking,
    start_tracking,
    track_bundle,
    track_epoch,
)
from re4.training.run.run import Run
from re4.training.trainer.loop import train


class MlflowException(Exception):  # noqa: N818 (as MLflow has it)
    pass


class Server:
    """What the client was told; `fails` makes every call fail."""

    def __init__(self):
        self.params, self.metrics, self.artifacts, self.experiments, self.ended = {}, {}, [], [], []
        self.fails = False

    def client(self):
        if self.fails:
            raise MlflowException("no server")
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def create_run(self, experiment, run_name, tags):
        self.started = experiment, run_name, tags
        return SimpleNamespace(info=SimpleNamespace(run_id="run-7"))

    def log_batch(self, run_id, metrics=(), params=()):
        assert run_id == "run-7"
        self.params |= {each.key: each.value for each in params}
        self.metrics |= {(each.key, each.step): each.value for each in metrics}

    def set_terminated(self, run_id):
        self.ended.append(run_id)

    def log_artifacts(self, run_id, folder, artifact_path):
        self.artifacts.append((run_id, folder, artifact_path))


@pytest.fixture
def server(monkeypatch):
    recording = Server()
    modules = {
        "mlflow": {},
        "mlflow.entities": {
            "Param": lambda key, value: SimpleNamespace(key=key, value=value),
            "Metric": lambda key, value, time, step: SimpleNamespace(key=key, value=value, step=step),
        },
        "mlflow.exceptions": {"MlflowException": MlflowException},
        "mlflow.tracking": {"MlflowClient": recording.client},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    return recording


def test_a_run_is_tracked_from_its_parameters_to_its_bundle(server, planted, small_options, tmp_path):
    options = TrainConfig(**{**small_options, "num_epochs": 2})
    train(planted, options, tmp_path / "run", device="cpu", mlflow=True)
    assert server.started[:2] == ("films", "run")
    assert server.started[2]["re4.data"] == str(planted.path)
    assert server.params["num_epochs"] == "2"
    recalls = {step: value for (name, step), value in server.metrics.items() if name == "valid/recall_50"}
    assert set(recalls) == {0, 1, 2}
    assert recalls == {
        each["epoch"]: each["valid"]["recall_50"] for each in Run.open(tmp_path / "run").metrics()
    }
    assert ("loss/total", 1) in server.metrics
    assert server.ended == ["run-7"]
    track_bundle(tmp_path / "run", tmp_path / "bundles" / "v1")
    assert server.artifacts == [("run-7", str(tmp_path / "bundles" / "v1"), "bundle/v1")]


def test_a_second_start_continues_the_run(server, tmp_path):
    start_tracking(tmp_path, {"a": 1}, {})
    start_tracking(tmp_path, {"a": 2}, {})
    assert server.params == {"a": "1"}
    assert server.experiments == ["films"]


def test_a_server_that_fails_ends_the_start_and_nothing_later(server, tmp_path, caplog):
    server.fails = True
    with pytest.raises(
        UsageError, match="--mlflow: the server of MLFLOW_TRACKING_URI cannot be used: no server"
    ):
        start_tracking(tmp_path, {}, {})
    server.fails = False
    start_tracking(tmp_path, {}, {})
    server.fails = True
    with caplog.at_level(logging.WARNING, "re4"):
        track_epoch(tmp_path, {"valid/recall_50": 0.5}, 1)
        end_tracking(tmp_path)
    assert caplog.text.count("MLflow: MlflowException: no server") == 2
    with pytest.raises(UsageError, match="the bundle cannot be logged: no server"):
        track_bundle(tmp_path, tmp_path)


def test_missing_pieces_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"re4-retrieval\[mlflow\]"):
        check_mlflow()


def test_a_run_that_was_not_tracked_has_no_bundle_there(server, tmp_path):
    with pytest.raises(UsageError, match="was not tracked; train it with --mlflow"):
        track_bundle(tmp_path, tmp_path)
