"""Training with attributes: runs without a trace of them, resumed and warm-started, and what is refused."""

import signal

import numpy as np
import polars as pl
import pytest
import torch
from planted_tastes import CLUSTER_SIZE, NUM_CLUSTERS

from re4.common.errors import UsageError
from re4.training import api
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import evaluate
from re4.training.model.attribute_values import attribute_values
from re4.training.model.attributes import AttributeMatrix, fit_effects
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import WEIGHTS, Run
from re4.training.run.tensor_files import read_tensors
from re4.training.trainer.loop import initial_vectors, new_model, resume, train
from re4.training.trainer.optimiser import Optimiser
from re4.training.trainer.warm_start import warm_start

CONFIG = TrainConfig(
    model="re4",
    embedding_dim=16,
    attention_dim=16,
    num_interests=2,
    construct_dim=8,
    num_epochs=2,
    learning_rate=0.01,
    negatives="uniform",
    num_negatives=50,
    initial_vectors="random",  # else the start is best
    attributes="taste",
)


@pytest.fixture(scope="module")
def described(planted, tmp_path_factory) -> Dataset:
    """The planted data, whose items have their taste as an attribute."""
    folder = tmp_path_factory.mktemp("described") / "data"
    folder.mkdir()
    for file in planted.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    items = planted.items()
    taste = pl.Series("taste", [int(name.split("-")[1]) // CLUSTER_SIZE for name in items["item_id"]])
    assert taste.n_unique() == NUM_CLUSTERS
    items.with_columns(taste).write_parquet(folder / "items.parquet")
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def finished(described, tmp_path_factory) -> Run:
    """A finished training."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(described, CONFIG, out, device="cpu")
    return Run.open(out)


def test_a_run_is_as_any_other_and_ranks_as_the_training_did(finished, described) -> None:
    assert not [name for name in read_tensors(finished.path / WEIGHTS) if "attributes" in name]
    recorded = finished.evaluation()["valid"]
    assert evaluate(finished.load_model(), described.valid, exclude_history=False).to_json() == recorded
    assert finished.config.attributes == "taste"
    assert finished.best_epoch == 2


def test_a_stopped_training_goes_on_to_the_same_weights(finished, described, tmp_path, monkeypatch) -> None:
    out, take_step, taken = tmp_path / "stopped", Optimiser.step, []

    def stop_at_the_ninth(self, losses, *, rate=1.0):
        take_step(self, losses, rate=rate)
        taken.append(rate)
        if len(taken) == 9:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Optimiser, "step", stop_at_the_ninth)
        with pytest.raises(KeyboardInterrupt):
            train(described, CONFIG, out, device="cpu")
    resume(out, described, device="cpu")
    assert (out / WEIGHTS).read_bytes() == (finished.path / WEIGHTS).read_bytes()


@pytest.mark.parametrize("attributes", ["", "taste"])
def test_a_warm_start_begins_with_the_earlier_vectors(attributes, finished, described) -> None:
    """Effects are fitted to them, whether the earlier run had attributes or not; a new item keeps its own."""
    earlier = finished if attributes else None
    config = TrainConfig(**(CONFIG.to_json() | {"initial_vectors": "svd"})).resolve(described.num_items)
    previous = MultiInterestModel(config, described.num_items)
    if earlier is not None:
        previous = earlier.load_model()
    model = new_model(config, described)
    model.set_item_vectors(initial_vectors(config, described))
    rows_N = np.arange(described.num_items)
    rows_N[-1] = -1
    warm_start(model, previous, rows_N)
    whole_ND = model.whole_vectors_ND()
    torch.testing.assert_close(whole_ND[:-1], previous.item_vectors_ND()[:-1])
    assert not torch.allclose(whole_ND[-1], previous.item_vectors_ND()[-1])
    effects_WD = model.attributes.weights_WD
    fitted_WD = fit_effects(whole_ND, described.item_counts(), model.attributes.matrix)
    torch.testing.assert_close(effects_WD.detach(), fitted_WD, rtol=1e-3, atol=1e-3)
    assert effects_WD[1:].abs().max() > 0.01


def test_attributes_say_more_about_vectors_that_were_trained_with_them(finished, described, tmp_path) -> None:
    plain = TrainConfig(**(CONFIG.to_json() | {"attributes": ""}))
    train(described, plain, tmp_path / "plain", device="cpu")
    values = attribute_values(described.items(), "taste")
    matrix = AttributeMatrix(values.owners_E, values.weights_E, described.num_items, values.num_weights)
    left = {}
    for name, run in (("plain", Run.open(tmp_path / "plain")), ("with", finished)):
        vectors_ND = run.load_model().item_vectors_ND()
        effects_WD = fit_effects(vectors_ND, described.item_counts(), matrix)
        rest_ND = vectors_ND - matrix.items(effects_WD)
        left[name] = float(rest_ND.square().sum() / (vectors_ND - effects_WD[0]).square().sum())
    assert left["with"] < left["plain"]


def test_what_cannot_have_attributes_is_refused(described, planted, tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="--attributes is taste; with --model ease it is always"):
        TrainConfig(model="ease", attributes="taste").resolve(10)
    with pytest.raises(UsageError, match="no column 'taste'"):
        train(planted, CONFIG, tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(api, "is_distributed", lambda: True)
    with pytest.raises(UsageError, match="--attributes is trained by one process only"):
        api.train(described, tmp_path / "ranks", attributes="taste")
