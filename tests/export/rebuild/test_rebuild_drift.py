"""Gate *drift*: a version with quite other answers is not published, one that differs a little is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rebuild_samples import Shop
from run_samples import TINY_CONFIG, train_tiny_run
from typer.testing import CliRunner

from re4.bundle.layout import CURRENT
from re4.bundle.publishing.current import read_current
from re4.cli import build_app
from re4.common.errors import GateError
from re4.exporting.rebuild.settings import Bounds

pytestmark = pytest.mark.usefixtures("converted_once")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_shuffled_vectors_are_refused_with_gate_and_figure(shop: Shop) -> None:
    """Vectors and ids mixed up: as good an index of as many items, but not for these ids."""
    order = np.random.default_rng(0).permutation(len(shop.version.vectors_ND))
    np.save(shop.vectors, shop.version.vectors_ND[order])
    error, report = shop.rebuild()
    assert isinstance(error, GateError)
    assert report["exit_code"] == error.exit_code == 3
    space, drift = (gate for gate in report["gates"] if not gate["passed"])
    assert (space["name"], drift["name"]) == ("embedding_space", "drift")
    assert 0 < drift["figure"] < Bounds().min_overlap == drift["low"]
    assert f"requests whose histories both versions know is {drift['figure']:.4g}, at least 0.2 is" in str(
        error
    )
    assert shop.files() == {CURRENT, shop.first}
    assert read_current(shop.bundles) == shop.first


def test_vectors_that_moved_a_little_are_published(shop: Shop) -> None:
    vectors = shop.version.vectors_ND
    noise = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    np.save(shop.vectors, vectors + 0.1 * noise)
    error, report = shop.rebuild("--min-overlap", 0.9)
    assert error is None
    drift = next(gate for gate in report["gates"] if gate["name"] == "drift")
    assert 0.9 < drift["figure"] < 1
    assert read_current(shop.bundles) == report["version"] != shop.first


def test_a_catalogue_that_shares_nothing_is_refused(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Shop(tmp_path / "other", id_kind="int")
    shop.vectors, shop.ids = other.vectors, other.ids
    error, report = shop.rebuild("--encoder-from", other.bundles / other.first)
    assert isinstance(error, GateError)
    (drift,) = [gate for gate in report["gates"] if not gate["passed"]]
    assert (drift["name"], drift["figure"]) == ("drift", 0)
    assert "over 0 real requests" in drift["meaning"]


def test_a_model_that_was_trained_anew_is_another_one(tiny_run: Path, tmp_path: Path) -> None:
    """From a run: the same one again passes, one of another beginning does not."""
    other = train_tiny_run(tmp_path, replace(TINY_CONFIG, seed=1, initial_vectors="random"))
    figures = []
    for run, code in ((tiny_run, 0), (tiny_run, 0), (other, 3)):
        words = ["rebuild", "--run", run, "--bundles", tmp_path / "bundles", "--num-candidates", 5]
        line = [
            *map(str, words),
            "--min-self-recall",
            "0",
            "--min-hubness-ratio",
            "0",
            "--min-overlap",
            "0.7",
            "--json",
        ]
        done = CliRunner().invoke(build_app(line), line)
        report = json.loads(done.stdout)
        assert report["exit_code"] == code, done.output
        figures += [gate["figure"] for gate in report["gates"] if gate["name"] == "drift"]
    assert figures[0] == 1
    assert figures[1] < 0.7
    assert isinstance(done.exception, GateError)
    assert "gate drift: share of the live version's answers given again, over 4 real requests" in str(
        done.exception
    )
    assert len(list((tmp_path / "bundles").glob("2*"))) == 2
