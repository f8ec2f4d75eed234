"""The rebuild job: published versions, refusals, and files left behind."""

import os
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rebuild_samples import NUM_ITEMS, Shop
from typer.testing import CliRunner

from re4.bundle.attributes.reader import Attributes
from re4.bundle.golden import GoldenQueries
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import CURRENT, GOLDEN, IS_COLD, POPULAR, VECTORS
from re4.bundle.manifest import IndexInfo
from re4.bundle.publishing.current import live_version, read_current
from re4.bundle.verify import verify_version
from re4.cli import build_app
from re4.common.errors import DataError, ExportError, GateError, RunError, UsageError
from re4.exporting.index.built_index import BuiltIndex
from re4.exporting.rebuild.job import seconds_left
from re4.training.run.run_folder import newest_run


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_vectors_made_elsewhere_become_the_live_version(shop: Shop) -> None:
    error, report = shop.rebuild()
    assert error is None
    path = live_version(shop.bundles)
    manifest = verify_version(path)
    assert (report["outcome"], report["version"]) == ("published", path.name)
    assert report["live_version_before"] == shop.first
    assert manifest.model == verify_version(shop.bundles / shop.first).model
    assert manifest.lineage["encoder_from"] == shop.first
    ids = ItemIds.open(path, "string", NUM_ITEMS)
    written = np.load(path / VECTORS)[ids.rows(shop.version.ids)]
    np.testing.assert_array_equal(written, shop.version.vectors_ND)
    assert {gate["name"] for gate in report["gates"]} == {
        *("embedding_space", "recall", "golden", "self_recall", "item_share", "coverage", "interests"),
        *("hubness", "drift"),
        *("count", "size"),
    }
    assert all(gate["passed"] for gate in report["gates"])
    assert shop.files() == {CURRENT, shop.first, path.name}


def test_a_catalogue_selects_the_live_items(shop: Shop) -> None:
    kept = shop.version.ids[:-20]
    colours = ["red" if row % 2 else "blue" for row in range(len(kept))]
    catalogue = shop.write_catalogue([*kept, "new-1", "new-2"], colour=[*colours, "red", "green"])
    error, report = shop.rebuild("--catalogue", catalogue)
    assert error is None
    assert (report["num_live"], report["num_cold"], report["num_removed"]) == (182, 2, 20)
    assert report["num_cold_without_relatives"] == 1
    path = live_version(shop.bundles)
    manifest = verify_version(path)
    ids = ItemIds.open(path, "string", 182)
    assert (ids.rows(shop.version.ids[-20:]) == -1).all()
    attributes = Attributes.open(path, manifest.items.attributes, 182)
    cold = attributes[IS_COLD].rows_with(attributes[IS_COLD].value_codes(["true"]).tolist())
    assert ids.ids(cold) == ["new-1", "new-2"]
    colour = attributes["colour"]
    red = colour.rows_with(colour.value_codes(["red"]).tolist())
    assert set(ids.ids(red)) == {
        "new-1",
        *(i for i, name in zip(kept, colours, strict=True) if name == "red"),
    }


def test_golden_queries_are_those_of_the_new_catalogue(shop: Shop) -> None:
    golden = GoldenQueries.read(shop.bundles / shop.first / GOLDEN)
    gone = {shop.version.ids[row] for row in golden.rows_QL[0, : golden.lengths_Q[0]]}
    catalogue = shop.write_catalogue([i for i in shop.version.ids if i not in gone])
    error, _ = shop.rebuild("--catalogue", catalogue)
    assert error is None
    path = live_version(shop.bundles)
    new = GoldenQueries.read(path / GOLDEN)
    vectors = np.load(path / VECTORS)
    scores_QN = (new.interests_QKD @ vectors.T).max(axis=1)
    best = np.sort(scores_QN, axis=1)[:, ::-1][:, : new.scores_QM.shape[1]]
    np.testing.assert_allclose(new.scores_QM, best, rtol=1e-5, atol=1e-5)


def test_a_dry_run_leaves_nothing(shop: Shop, tmp_path: Path) -> None:
    before = shop.files()
    error, report = shop.rebuild("--dry-run", "--catalogue", shop.write_catalogue(shop.version.ids))
    assert error is None
    assert report["outcome"] == "dry run"
    assert len(report["gates"]) == 11
    assert "version" not in report
    assert shop.files() == before
    assert read_current(shop.bundles) == shop.first
    version = shop.bundles / shop.first
    shop.bundles = tmp_path / "elsewhere"
    error, _ = shop.rebuild("--dry-run", "--encoder-from", version)
    assert error is None
    assert not shop.bundles.exists()


@pytest.mark.parametrize(
    ("option", "value", "gate"),
    [
        ("--min-golden-recall", 1, "golden"),
        ("--min-self-recall", 1, "self_recall"),
        ("--max-item-share", 0.01, "item_share"),
        ("--min-hubness-ratio", 5, "hubness"),
        ("--min-items-ratio", 1.1, "count"),
        ("--max-items-ratio", 0.9, "count"),
        ("--min-bytes-ratio", 1.5, "size"),
        ("--max-bytes-ratio", 0.6, "size"),
    ],
)
def test_a_failed_gate_publishes_nothing_and_says_which(
    shop: Shop, option: str, value: float, gate: str
) -> None:
    index = ["--index", "HNSW4,Flat", "--recall", 0.6] if value == 1 else ["--index", "flat"]
    error, report = shop.rebuild(option, value, *index)
    assert isinstance(error, GateError)
    assert f"gate {gate}: " in str(error)
    assert report["exit_code"] == error.exit_code == 3
    assert report["outcome"] == "gate failed"
    failed = [found for found in report["gates"] if not found["passed"]]
    assert [found["name"] for found in failed] == [gate]
    assert f"{failed[0]['figure']:.4g}" in str(error)
    assert shop.files() == {CURRENT, shop.first}


def test_a_recall_out_of_reach_is_a_failed_gate(shop: Shop) -> None:
    error, report = shop.rebuild("--index", "HNSW2,Flat", "--recall", 1)
    assert isinstance(error, GateError)
    assert "gate recall" in str(error)
    assert report["outcome"] == "gate failed"
    assert shop.files() == {CURRENT, shop.first}


def test_an_encoder_of_another_space_is_refused(shop: Shop) -> None:
    rng = np.random.default_rng(5)
    np.save(shop.vectors, rng.standard_normal(shop.version.vectors_ND.shape).astype(np.float32))
    error, _ = shop.rebuild()
    assert isinstance(error, GateError)
    assert "gate embedding_space" in str(error)
    assert shop.files() == {CURRENT, shop.first}


def test_answers_that_drift_are_refused_unless_that_is_meant(shop: Shop) -> None:
    """The same items in the same space, but half of them turned round: other answers."""
    vectors = shop.version.vectors_ND.copy()
    vectors[::2] *= -1
    np.save(shop.vectors, vectors)
    error, report = shop.rebuild("--min-agreement", 0, "--min-overlap", 0.9)
    assert isinstance(error, GateError)
    drift = next(gate for gate in report["gates"] if gate["name"] == "drift")
    assert 0 < drift["figure"] < 0.9
    error, _ = shop.rebuild("--min-agreement", 0, "--min-overlap", drift["figure"] - 0.01)
    assert error is None


def test_crowded_vectors_are_refused(shop: Shop) -> None:
    """A few vectors so long that they are everybody's best."""
    vectors = shop.version.vectors_ND.copy()
    vectors[:120] *= 50
    np.save(shop.vectors, vectors)
    error, _ = shop.rebuild("--min-overlap", 0)
    assert isinstance(error, GateError)
    assert "gate hubness" in str(error)


def test_gates_that_compare_are_left_out_where_nothing_can_be_compared(shop: Shop) -> None:
    version = shop.bundles / shop.first
    (version / "extra").write_text("damage")
    error, report = shop.rebuild("--min-items-ratio", 1.1, "--encoder-from", version)
    assert error is not None
    assert "extra" in str(error)
    (version / "extra").unlink()
    (shop.bundles / CURRENT).write_text("20200101T000000Z-01234567\n")
    error, report = shop.rebuild("--min-items-ratio", 1.1, "--encoder-from", version)
    assert error is None
    assert {gate["name"] for gate in report["gates"]} == {
        "embedding_space",
        "recall",
        "golden",
        "self_recall",
        "item_share",
        "coverage",
        "interests",
    }
    assert "20200101T000000Z-01234567" in report["live_version_problem"]


def test_old_versions_go_as_asked(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(1, 9))

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return datetime(2126, 1, 31, next(hours), tzinfo=UTC)

    monkeypatch.setattr("re4.bundle.publishing.publish.datetime", Clock)
    made = [shop.first]
    for pruned in ([], [shop.first]):
        error, report = shop.rebuild("--keep", 1)
        assert error is None
        assert report["pruned"] == pruned
        made.append(report["version"])
    assert shop.files() == {CURRENT, *made[1:]}


def test_the_time_left_is_estimated_from_the_last_job(shop: Shop) -> None:
    last = {"read": 1.0, "item vectors": 2.0, "index Flat": 30.0, "gates": 4.0}
    assert seconds_left(last, "item vectors") == 36
    assert seconds_left(last, "index IVF64,PQ8x4fs") == 34
    assert seconds_left(last, "publish") is None
    assert seconds_left({}, "read") is None
    assert shop.rebuild()[0] is None
    _, report = shop.rebuild("--dry-run")
    assert list(report["stages_s_last_time"])[:3] == ["live version", "read", "select"]


def test_a_parquet_file_with_both(shop: Shop) -> None:
    shop.vectors = shop.folder / "vectors.parquet"
    pl.DataFrame({"sku": shop.version.ids, "v": shop.version.vectors_ND.tolist()}).write_parquet(shop.vectors)
    line = shop.line("--id-column", "sku", "--vector-column", "v")
    at = line.index("--ids")
    del line[at : at + 2]
    done = CliRunner().invoke(build_app(line), line)
    assert done.exit_code == 0, done.output
    written = np.load(live_version(shop.bundles) / VECTORS)
    assert sorted(map(tuple, written)) == sorted(map(tuple, shop.version.vectors_ND))


@pytest.mark.parametrize("has_catalogue", [False, True])
def test_rows_are_in_order_of_popularity_whatever_order_is_given(has_catalogue: bool, shop: Shop) -> None:
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    ids = [shop.version.ids[row] for row in order]
    np.save(shop.vectors, shop.version.vectors_ND[order])
    np.save(shop.ids, np.array(ids))
    options = ["--catalogue", shop.write_catalogue(sorted(ids))] if has_catalogue else []
    error, report = shop.rebuild(*options)
    assert error is None
    path = live_version(shop.bundles)
    popular = shop.version.popular_rows
    first = ItemIds.open(path, "string", NUM_ITEMS).ids(np.arange(len(popular)))
    assert first == [shop.version.ids[row] for row in popular]
    np.testing.assert_array_equal(np.load(path / POPULAR), np.arange(NUM_ITEMS))
    np.testing.assert_array_equal(np.load(path / VECTORS)[: len(popular)], shop.version.vectors_ND[popular])
    drift = next(gate for gate in report["gates"] if gate["name"] == "drift")
    assert drift["figure"] == 1, "histories have followed their items"


@pytest.mark.parametrize(
    "words", [[], ["--run", "r", "--vectors", "v.npy"], ["--run", "r", "--ids", "i.npy"]]
)
def test_words_that_contradict(words: list[str], tmp_path: Path) -> None:
    line = ["rebuild", "--bundles", str(tmp_path / "b"), *words]
    done = CliRunner().invoke(build_app(line), line)
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "b").exists()


def test_the_newest_finished_run_is_taken(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        newest_run(tmp_path)
    for place, name in enumerate(["b", "c", "a"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (place, place))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"
    assert newest_run(tmp_path / "b") == tmp_path / "b"


def test_no_history_left_is_said(shop: Shop) -> None:
    golden = GoldenQueries.read(shop.bundles / shop.first / GOLDEN)
    known = set(golden.rows_QL[golden.rows_QL >= 0].ravel().tolist())
    ids = [i for row, i in enumerate(shop.version.ids) if row not in known]
    error, _ = shop.rebuild("--catalogue", shop.write_catalogue(ids), "--min-items-ratio", 0)
    assert isinstance(error, ExportError)
    assert "histories is live" in str(error)
    catalogue = shop.write_catalogue(["nobody"])
    error, _ = shop.rebuild("--catalogue", catalogue)
    assert isinstance(error, DataError)


def test_the_gates_hold_one_index_at_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that judging takes no more memory than building: servers map not every kind, nor do the gates."""
    opened: list[weakref.ref[Any]] = []
    real = BuiltIndex.open

    def opening(path: Path, info: IndexInfo, shape: tuple[int, ...]) -> BuiltIndex:
        assert not any(index() for index in opened)
        built = real(path, info, shape)
        opened.append(weakref.ref(built.index))
        return built

    monkeypatch.setattr(BuiltIndex, "open", opening)
    assert shop.rebuild()[0] is None
    assert len(opened) == 2
