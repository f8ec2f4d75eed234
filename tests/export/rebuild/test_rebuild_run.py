"""A rebuild from a run: its newest weights, a catalogue of the day, new items, and servers that take it."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from re4.bundle.attributes.reader import Attributes
from re4.bundle.cold_start import ColdStart
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import COLD_START, IS_COLD, VECTORS
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.cli import build_app
from re4.common.errors import ExportError, GateError
from re4.exporting import assemble as assembling
from re4.exporting.sources import version_inputs
from re4.exporting.storage.mapped_vectors import sha256_of
from re4.serving.settings import ServerSettings
from re4.serving.versions.version_check import load_and_try
from re4.training.run.run import Run
from re4.training.run.run_folder import CONFIG

pytestmark = pytest.mark.usefixtures("converted_once")


def test_a_run_and_the_catalogue_of_the_day(tiny_run: Path, tmp_path: Path) -> None:
    """30 items were trained: three left, two are new. The encoder is the run's, and fits all the same."""
    run = Run.open(tiny_run)
    trained = run.load_model().item_vectors_ND().detach().numpy()
    ids = run.items()["item_id"].to_list()
    catalogue = pl.DataFrame(
        {
            "sku": [*reversed(ids[3:]), 1, 2],
            "parity": [[f"p{number % 2}"] for number in [*reversed(ids[3:]), 1, 2]],
        }
    )
    catalogue.write_parquet(tmp_path / "catalogue.parquet")
    line = ["rebuild", "--run", tiny_run.parent, "--bundles", tmp_path / "bundles", "--num-candidates", "10"]
    line += ["--catalogue", tmp_path / "catalogue.parquet", "--catalogue-item-column", "sku"]
    words = [*map(str, line), "--json", "--min-self-recall", "0.5", "--attributes", "parity"]
    done = CliRunner().invoke(build_app(words), words)
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(done.stdout)
    assert (report["num_live"], report["num_removed"], report["num_cold"]) == (29, 3, 2)

    path = live_version(tmp_path / "bundles")
    manifest = verify_version(path)
    load_and_try(path, ServerSettings())
    assert manifest.model.space == manifest.items.space == sha256_of(trained)
    assert manifest.lineage["run"] == tiny_run.name
    assert manifest.lineage["gates"]["recall"] == 1

    item_ids = ItemIds.open(path, "int", 29)
    assert item_ids.ids(np.arange(29)) == [*ids[3:], 1, 2]  # in the run's order of popularity, then the new
    vectors = np.load(path / VECTORS)
    np.testing.assert_array_equal(vectors[:27], trained[3:])
    attributes = Attributes.open(path, manifest.items.attributes, 29)
    cold_start = ColdStart.read(path / COLD_START, manifest.items.attributes, trained.shape[1])
    expected = cold_start.vectors_of_values(attributes, [{"parity": ["p1"]}, {"parity": ["p0"]}])
    np.testing.assert_allclose(vectors[27:], expected, rtol=1e-5)
    assert manifest.lineage["cold_start"].keys() == {"scale", "share", "num_at_mean"}
    assert attributes.names == ("parity", IS_COLD)
    assert np.flatnonzero(
        attributes[IS_COLD].mask_with(attributes[IS_COLD].value_codes(["true"]))
    ).tolist() == [
        27,
        28,
    ]


def tables_of_items() -> int:
    """Return how many are in memory."""
    gc.collect()
    frames = [thing for thing in gc.get_objects() if type(thing) is pl.DataFrame]
    return sum("item_id" in frame.columns and len(frame) > 0 for frame in frames)


@pytest.mark.parametrize("subcommand", ["export", "rebuild"])
def test_a_runs_vectors_and_ids_are_out_of_memory_while_the_index_is_built(
    subcommand: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory: list[weakref.ref[Any]] = []
    before = tables_of_items()
    real = version_inputs._vectors

    def reading(run: Any, items: Any, model: Any, folder: Path) -> np.ndarray:
        vectors = real(run, items, model, folder)
        in_memory.extend([weakref.ref(vectors), weakref.ref(model.item_embedding.weight)])
        return vectors

    def building(*given: Any, **options: Any) -> NoReturn:
        assert [ref() for ref in in_memory] == [None, None]
        assert tables_of_items() == before
        raise ExportError("this far")

    monkeypatch.setattr(version_inputs, "_vectors", reading)
    monkeypatch.setattr(assembling, "make_index", building)
    words = ["export", str(tiny_run)] if subcommand == "export" else ["rebuild", "--run", str(tiny_run)]
    words += ["--bundles", str(tmp_path / "bundles")]
    done = CliRunner().invoke(build_app(words), words)
    assert isinstance(done.exception, ExportError), done.exception
    assert str(done.exception) == "this far"


def test_the_first_catalogue_may_have_many_new_items_and_the_columns_of_preparation(
    tiny_run: Path, tmp_path: Path
) -> None:
    """The live version has the 30 trained items; the catalogue has 60 new ones beside them."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    facts = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps({**facts, "catalogue_item_column": "sku"}))
    bundles, catalogue = tmp_path / "bundles", tmp_path / "catalogue.parquet"
    ids = Run.open(run).items()["item_id"].to_list()
    pl.DataFrame({"sku": [*ids, *range(max(ids) + 1, max(ids) + 61)]}).write_parquet(catalogue)
    words = ["rebuild", "--run", str(run), "--bundles", str(bundles), "--num-candidates", "10"]
    words += ["--min-self-recall", "0", "--max-item-share", "1", "--json"]
    first = CliRunner().invoke(build_app(words), words)
    assert first.exit_code == 0, (first.output, first.exception)
    words += ["--catalogue", str(catalogue)]
    done = CliRunner().invoke(build_app(words), words)
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(done.stdout)
    assert (report["num_live"], report["num_cold"]) == (90, 60)
    assert {gate["name"]: gate["figure"] for gate in report["gates"]}["count"] == 1

    few = tmp_path / "few.parquet"
    pl.DataFrame({"sku": ids}).write_parquet(few)
    words[-1] = str(few)
    refused = CliRunner().invoke(build_app(words), words)
    assert isinstance(
        refused.exception, GateError
    )  # 30 of the 90 items of a version that had a catalogue: it is not the first
