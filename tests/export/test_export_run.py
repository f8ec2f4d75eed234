"""From a run to a live version: published files, and refusals."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import onnx
import pytest
import torch
from run_samples import FakeRun, publish_run
from typer.testing import CliRunner

from re4.bundle.golden import GoldenQueries
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import CURRENT, ENCODER, GOLDEN, INDEX, POPULAR, VECTORS
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.common.errors import BundleError, ExportError, RunError, UsageError
from re4.exporting.assemble import ENCODER_DIFFERENCE
from re4.exporting.cli import export as export_subcommand
from re4.exporting.encoder.onnx_encoder import SPACE_KEY
from re4.exporting.exporter import export_run
from re4.exporting.settings import VersionSettings
from re4.exporting.storage.mapped_vectors import sha256_of
from re4.training.run.run import Run

pytestmark = pytest.mark.usefixtures("converted_once")


def test_a_version_is_an_artefact_of_its_run_in_mlflow(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, str, str]] = []

    class Client:
        def log_artifacts(self, run_id: str, folder: str, artifact_path: str) -> None:
            logged.append((run_id, folder, artifact_path))

    for name, content in (
        ("mlflow", {}),
        ("mlflow.exceptions", {"MlflowException": ValueError}),
        ("mlflow.tracking", {"MlflowClient": Client}),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    run, bundles = tmp_path / "run", tmp_path / "bundles"
    shutil.copytree(tiny_run, run)
    with pytest.raises(UsageError, match="was not tracked; train it with --mlflow"):
        export_subcommand(run, bundles, mlflow=True)
    assert not bundles.exists(), "nothing is published"
    (run / "mlflow.json").write_text('{"run_id": "run-7"}')
    export_subcommand(run, bundles, mlflow=True)
    path = live_version(bundles)
    assert logged == [("run-7", str(path), f"bundle/{path.name}")]


def test_a_run_becomes_the_live_version(tiny_run: Path, tmp_path: Path) -> None:
    version = export_run(tiny_run, tmp_path / "bundles")

    path = live_version(tmp_path / "bundles")
    manifest = verify_version(path)
    run = Run.open(tiny_run)
    assert manifest.version == version
    assert (manifest.model.name, manifest.model.num_interests) == ("re4", 2)
    assert (manifest.model.embedding_dim, manifest.model.max_history_length) == (8, 4)
    assert (manifest.items.num_items, manifest.items.id_kind) == (30, "int")
    assert (manifest.index.kind, manifest.index.recall) == ("flat", 1.0)
    interests = manifest.evaluation["interests"]
    assert manifest.evaluation == {**run.evaluation(), "interests": interests}
    assert 1 <= interests["effective_interests"] <= manifest.model.num_interests
    assert manifest.lineage["run"] == "run"
    assert manifest.lineage["config"] == run.config.to_json()
    assert 0 <= manifest.lineage[ENCODER_DIFFERENCE] <= 1e-5

    vectors = np.load(path / VECTORS, mmap_mode="r", allow_pickle=False)
    trained = run.load_model().item_vectors_ND().numpy()
    np.testing.assert_array_equal(vectors, trained)
    assert (vectors.dtype, vectors.flags.c_contiguous) == (np.float32, True)
    metadata = {put.key: put.value for put in onnx.load(path / ENCODER).metadata_props}
    assert metadata[SPACE_KEY] == manifest.model.space == manifest.items.space == sha256_of(trained)

    ids = ItemIds.open(path, "int", 30)
    assert ids.ids(np.arange(30)) == run.items()["item_id"].to_list()


def test_the_golden_answers_are_those_of_the_trained_model(tiny_run: Path, tmp_path: Path) -> None:
    export_run(tiny_run, tmp_path)
    run = Run.open(tiny_run)
    golden = GoldenQueries.read(live_version(tmp_path) / GOLDEN)
    probes = {tuple(row) for row in run.probe_histories()[0].tolist()}
    assert {tuple(row) for row in golden.rows_QL.tolist()} <= probes
    model = run.load_model()
    with torch.inference_mode():
        encoded = model.interests(torch.from_numpy(golden.rows_QL), torch.from_numpy(golden.lengths_Q))
        interests = encoded.interests_BKD
        scores = (interests @ model.item_vectors_ND().T).amax(dim=1)
    np.testing.assert_allclose(golden.interests_QKD, interests.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(golden.scores_QM, scores.sort(descending=True).values.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(scores.numpy(), golden.candidate_rows_QM, axis=1), golden.scores_QM, atol=1e-5
    )


def test_the_index_answers_as_the_golden_queries_say(published: Path) -> None:
    path = live_version(published)
    index = faiss.read_index(str(path / INDEX))
    golden = GoldenQueries.read(path / GOLDEN)
    assert golden.rows_QL.shape == (64, 5)
    assert golden.candidate_rows_QM.shape == (64, 50), "every item, as there are fewer than 100"
    assert len(np.unique(golden.rows_QL, axis=0)) > 50, "spread over the run's histories"
    for interests_KD, rows_M, scores_M in zip(
        golden.interests_QKD, golden.candidate_rows_QM, golden.scores_QM, strict=True
    ):
        scores_KM, rows_KM = index.search(interests_KD, 50)
        best = {}
        for row, score in zip(rows_KM.ravel().tolist(), scores_KM.ravel().tolist(), strict=True):
            best[row] = max(score, best.get(row, -np.inf))
        np.testing.assert_allclose(scores_M, sorted(best.values(), reverse=True), atol=1e-4)
        np.testing.assert_allclose([best[row] for row in rows_M.tolist()], scores_M, atol=1e-4)


def test_a_catalogue_of_strings(published: Path) -> None:
    path = live_version(published)
    assert verify_version(path).items.id_kind == "string"
    assert ItemIds.open(path, "string", 50).rows(["item 49", "item 50"]).tolist() == [49, -1]


def test_popular_items_come_most_popular_first(fake_run: FakeRun, published: Path) -> None:
    popular = np.load(live_version(published) / POPULAR)
    counts = fake_run.counts_N[popular]
    assert popular.dtype == np.int64
    assert sorted(popular.tolist()) == list(range(50))
    assert (np.diff(counts) <= 0).all()
    ties = np.diff(counts) == 0
    assert ties.any()
    assert (np.diff(popular)[ties] > 0).all(), "ties in the order of the rows"


def test_a_catalogue_of_one_item(tmp_path: Path) -> None:
    publish_run(FakeRun(num_items=1, num_probes=1), tmp_path, index="flat")
    golden = GoldenQueries.read(live_version(tmp_path) / GOLDEN)
    assert golden.candidate_rows_QM.tolist() == [[0]]


def no_items(run: FakeRun) -> None:
    run.item_ids, run.vectors_ND = [], np.zeros((0, 8), np.float32)


def not_finite(run: FakeRun) -> None:
    run.vectors_ND[[7, 9], 3] = [np.nan, np.inf]


def fewer_vectors(run: FakeRun) -> None:
    run.vectors_ND = run.vectors_ND[:49]


def narrower_vectors(run: FakeRun) -> None:
    run.vectors_ND = run.vectors_ND[:, :7]


def fewer_counts(run: FakeRun) -> None:
    run.counts_N = run.counts_N[:49]


def same_id_twice(run: FakeRun) -> None:
    run.item_ids[5] = run.item_ids[2]


def no_id(run: FakeRun) -> None:
    run.item_ids[5] = None


def no_probes(run: FakeRun) -> None:
    run.rows_PL, run.lengths_P = run.rows_PL[:0], run.lengths_P[:0]


def probe_of_an_unknown_row(run: FakeRun) -> None:
    run.rows_PL[0, 0] = 50


def probe_of_a_negative_row(run: FakeRun) -> None:
    run.rows_PL[0, 0] = -1


def empty_probe(run: FakeRun) -> None:
    run.lengths_P[0] = 0


def overlong_probe(run: FakeRun) -> None:
    run.lengths_P[0] = 6


def broken_encoder(run: FakeRun) -> None:
    torch.nn.init.constant_(run.encoder.W2, torch.inf)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (no_items, ExportError, "no items"),
        (not_finite, ExportError, r"item 'item 7' \(row 7\) is not finite, nor are those of 1 others"),
        (fewer_vectors, ExportError, r"shape \(49, 8\) for 50 items of width 8"),
        (narrower_vectors, ExportError, r"shape \(50, 7\)"),
        (fewer_counts, ExportError, "49 item counts for 50 items"),
        (same_id_twice, BundleError, "'item 2': in row 2 and in row 5"),
        (no_id, BundleError, "row 5: None"),
        (no_probes, ExportError, "no held-out histories"),
        (probe_of_an_unknown_row, ExportError, "a row from 0 to 50; 0 to 49 is allowed"),
        (probe_of_a_negative_row, ExportError, "a row from -1"),
        (empty_probe, ExportError, "a length from 0"),
        (overlong_probe, ExportError, "a length from 1 to 6; 1 to 5 is allowed"),
        (broken_encoder, ExportError, "not all finite"),
    ],
)
def test_a_run_that_cannot_be_served_is_refused_and_the_old_version_stays(
    fake_run: FakeRun,
    published: Path,
    spoil: Callable[[FakeRun], None],
    error: type[Exception],
    message: str,
) -> None:
    old = live_version(published)
    spoil(fake_run)
    with pytest.raises(error, match=message):
        publish_run(fake_run, published, index="flat")
    assert {path.name for path in published.iterdir()} == {CURRENT, old.name}
    assert live_version(published) == old


def test_an_unknown_index_kind_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--index is 'magic'; choose one of auto, flat"):
        export_run(tmp_path / "no run", tmp_path / "bundles", VersionSettings(index="magic"))
    assert not list(tmp_path.iterdir())


def test_a_missing_run_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        export_run(tmp_path / "no run", tmp_path / "bundles")
    assert not list(tmp_path.iterdir())


def test_an_index_that_cannot_be_written_leaves_the_old_version(
    fake_run: FakeRun, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = live_version(published)
    write_index = faiss.write_index
    monkeypatch.setattr(faiss, "write_index", lambda index, path: write_index(index, path + "/nowhere"))
    with pytest.raises(ExportError, match="FAISS could not write the index"):
        publish_run(fake_run, published, index="flat")
    assert {path.name for path in published.iterdir()} == {CURRENT, old.name}


def test_the_subcommand_prints_the_published_version(tiny_run: Path, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(export_subcommand)
    done = CliRunner().invoke(app, [str(tiny_run), "--bundles", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    path = live_version(tmp_path)
    assert (answer["version"], answer["path"]) == (path.name, str(path))
    assert answer["num_bytes"][VECTORS] == (path / VECTORS).stat().st_size
    assert answer[ENCODER_DIFFERENCE] <= 1e-5
    assert (answer["index"]["kind"], answer["index"]["recall"]) == ("flat", 1.0)
    assert answer["attributes"] == [{"name": "colour", "num_values": 2, "is_multi_valued": False}]

    done = CliRunner().invoke(
        app, [str(tiny_run), "--bundles", str(tmp_path), "--attributes", "title", "--verbose"]
    )
    assert done.exit_code == 0, done.output
    assert live_version(tmp_path).name in done.stdout
    assert "largest difference" in done.stdout
    assert "attribute title" in done.stdout
    assert INDEX in done.stdout
