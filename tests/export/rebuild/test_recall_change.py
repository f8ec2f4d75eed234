"""The new model against the live one on held-out users: a worse one is refused, an undecided one passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted_tastes import write_planted
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from re4.bundle.ids.id_map import ItemIds
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.cli import build_app
from re4.common.errors import GateError, UsageError
from re4.exporting.rebuild.settings import Bounds
from re4.exporting.sources.version_inputs import trained_on_facts
from re4.training import api
from re4.training.run.trained_on import TrainedOn

pytestmark = pytest.mark.usefixtures("converted_once")
OPTIONS = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 2, "construct_dim": 4, "num_epochs": 2}
LOOSE = [
    "--min-overlap",
    "0",
    "--min-hubness-ratio",
    "0",
    "--max-item-share",
    "1",
    "--min-self-recall",
    "0",
    "--min-coverage-ratio",
    "0",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one that may be as good (another seed), and one that is worse (its vectors in another order)."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = write_planted(folder / "data")
    for name, seed in (("good", 0), ("similar", 1)):
        api.train(dataset, folder / name, device="cpu", **OPTIONS, seed=seed)
    shutil.copytree(folder / "good", folder / "worse")
    weights = load_file(folder / "worse" / "weights.safetensors")
    vectors = weights["item_embedding.weight"]
    weights["item_embedding.weight"] = vectors[
        np.random.default_rng(0).permutation(len(vectors))
    ].contiguous()
    save_file(weights, folder / "worse" / "weights.safetensors")
    return folder


def rebuild(runs: Path, name: str, bundles: Path, *options: object) -> tuple[Any, dict[str, Any]]:
    report = bundles.parent / "report.json"
    words = [
        "rebuild",
        "--run",
        runs / name,
        "--bundles",
        bundles,
        "--report",
        report,
        "--num-candidates",
        10,
    ]
    line = [str(word) for word in (*words, "--num-candidates", 10, *LOOSE, *options)]
    done = CliRunner().invoke(build_app(line), line)
    return done.exception, json.loads(report.read_text())


def gate_of(report: dict[str, Any]) -> dict[str, Any] | None:
    return next((gate for gate in report["gates"] if gate["name"] == "recall_change"), None)


@pytest.fixture
def bundles(runs: Path, tmp_path: Path) -> Path:
    """A bundle directory whose live version is made of the good run."""
    error, report = rebuild(runs, "good", tmp_path / "bundles")
    assert error is None
    assert gate_of(report) is None, "no version was live"
    return tmp_path / "bundles"


def test_a_worse_run_is_refused_and_the_live_version_stays(runs: Path, bundles: Path) -> None:
    before = live_version(bundles)
    error, report = rebuild(runs, "worse", bundles)
    assert isinstance(error, GateError)
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["recall_change"]
    assert "gate recall_change" in str(error)
    assert "--min-recall-change" in str(error)
    change = gate_of(report)["details"]["change"]
    assert change["high"] < -0.05 * gate_of(report)["details"]["live_recall_50"]
    assert live_version(bundles) == before


def test_new_items_take_no_places_in_the_comparison(runs: Path, bundles: Path, tmp_path: Path) -> None:
    """The same model with half as many items again, which have places in the lists, is as good as before."""
    ids = pl.read_parquet(runs / "data" / "items.parquet")["item_id"].to_list()
    catalogue = pl.DataFrame({"item_id": [*ids, *(f"new-{row}" for row in range(60))]}).with_row_index(
        "group"
    )
    catalogue.with_columns(pl.col("group") % 8).write_parquet(tmp_path / "catalogue.parquet")
    options = ("--catalogue", tmp_path / "catalogue.parquet", "--cold-share", 0.3, "--min-recall-change", 0)
    error, report = rebuild(runs, "good", bundles, *options)
    assert error is None, report
    change = gate_of(report)["details"]["change"]
    assert (change["low"], change["mean"], change["high"]) == (0, 0, 0)


def test_an_undecided_run_passes_and_the_manifest_has_the_comparison(runs: Path, bundles: Path) -> None:
    error, report = rebuild(runs, "similar", bundles, "--min-recall-change", 0)
    assert error is None
    change = gate_of(report)["details"]["change"]
    assert change["low"] <= 0 <= change["high"]
    assert gate_of(report)["passed"]
    manifest = verify_version(live_version(bundles))
    assert manifest.lineage["recall_change"] == gate_of(report)["details"]
    assert manifest.lineage["gates"]["recall_change"] == pytest.approx(gate_of(report)["figure"])
    assert gate_of(report)["details"]["num_users"] >= 20


def test_the_comparison_agrees_with_that_of_the_runs(runs: Path, bundles: Path) -> None:
    _, report = rebuild(runs, "similar", bundles, "--dry-run")
    of_runs = api.evaluate(runs / "similar", against=runs / "good", data=runs / "data")
    assert gate_of(report)["details"]["recall_50"] == pytest.approx(of_runs.recall_50, abs=1e-3)
    assert gate_of(report)["details"]["live_recall_50"] == pytest.approx(of_runs.against.recall_50, abs=1e-3)
    assert gate_of(report)["details"]["change"]["low"] == pytest.approx(
        of_runs.difference["recall_50"].low, abs=1e-3
    )


def test_items_that_left_are_no_targets_and_no_candidates_of_either(
    runs: Path, bundles: Path, tmp_path: Path
) -> None:
    """The same run with half of its catalogue: nothing has changed for the items that are left."""
    manifest = verify_version(live_version(bundles))
    ids = ItemIds.open(live_version(bundles), "string", manifest.items.num_items)
    kept = ids.ids(np.arange(0, manifest.items.num_items, 2))
    pl.DataFrame({"item_id": kept}).write_csv(tmp_path / "catalogue.csv")
    error, report = rebuild(
        runs, "good", bundles, "--catalogue", tmp_path / "catalogue.csv", "--min-items-ratio", 0, "--dry-run"
    )
    assert error is None
    compared = gate_of(report)["details"]
    # The new version lacks half of each history; of the 60 items that are left, 50 are returned.
    assert compared["recall_50"] == pytest.approx(compared["live_recall_50"], abs=0.1)
    assert min(compared["recall_50"], compared["live_recall_50"]) > 0.8


def test_it_can_be_switched_off(runs: Path, bundles: Path) -> None:
    error, report = rebuild(runs, "worse", bundles, "--min-recall-change", -1)
    assert error is None
    assert gate_of(report) is None
    with pytest.raises(UsageError, match="--min-recall-change is -2"):
        Bounds(min_recall_change=-2)


def test_without_its_data_set_the_gate_is_left_out_with_the_reason(
    runs: Path, bundles: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "worse", tmp_path / "elsewhere")
    facts = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(facts | {"dataset": "/gone"}))
    error, report = rebuild(tmp_path, "elsewhere", bundles, "--dry-run")
    assert error is None
    assert gate_of(report) is None
    assert "was trained on /gone, which is not there" in report["recall_change_left_out"]


def test_a_chain_of_the_same_split_is_recorded_once() -> None:
    rule = {"split": "user", "split_rule": "hash of the user id", "seed": 0}
    days = [TrainedOn(dataset=f"/data/{day}", split=rule, crc32={}) for day in range(3)]
    by_time = [TrainedOn(dataset=f"/data/{day}", split={"split": "time"}, crc32={}) for day in range(2)]
    facts = trained_on_facts([*days, *by_time, TrainedOn(), days[0]])
    assert [each["dataset"] for each in facts] == ["/data/0", "/data/0", "/data/1", None]
