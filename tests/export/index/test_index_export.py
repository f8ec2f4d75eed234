"""Export with an index that is not flat: published files, and refusals."""

import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from plain_search import plain_search
from run_samples import FakeRun, publish_run
from typer.testing import CliRunner

from re4.bundle.golden import GoldenQueries
from re4.bundle.layout import CURRENT, GOLDEN, INDEX, VECTORS
from re4.bundle.manifest import IndexInfo
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import verify_version
from re4.common.errors import ExportError, UsageError
from re4.exporting import assemble as assembling
from re4.exporting.exporter import export_run
from re4.exporting.index import index_stages
from re4.exporting.index.frontier_plot import FRONTIER
from re4.exporting.index.index_names import MAX_FLAT_ITEMS, RECIPES, choose_index
from re4.exporting.settings import RecallTarget, VersionSettings

pytestmark = pytest.mark.usefixtures("converted_once")

TARGET = RecallTarget(recall=0.8, num_candidates=20)


@pytest.fixture(scope="module")
def large_run() -> FakeRun:
    return FakeRun(num_items=3000, num_probes=80)


@pytest.fixture(scope="module")
def published(large_run: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundles = tmp_path_factory.mktemp("bundles")
    publish_run(large_run, bundles, index="ivf-pq", target=TARGET)
    return live_version(bundles)


def test_the_manifest_holds_the_choice_and_the_alternatives(published: Path) -> None:
    info = verify_version(published).index
    assert (info.kind, info.factory) == ("ivf", "IVF64,PQ8x4fsr")
    assert set(info.search_parameters) == {
        "nprobe",
        "shared_nprobe",
        "reach_drop",
        "k_factor",
        "pool_factor",
    }
    assert info.recall >= info.recall_target == TARGET.recall
    assert (info.num_candidates, info.num_queries) == (20, 40)
    assert len(info.frontier) > 3
    size = (published / INDEX).stat().st_size / 3000
    assert {point.bytes_per_item for point in info.frontier} == {size}


def test_the_plot_is_a_listed_file_of_the_version(published: Path) -> None:
    assert FRONTIER in {entry.name for entry in verify_version(published).files}
    assert (published / FRONTIER).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("budget", [("nprobe",), ("shared_nprobe", "reach_drop")])
def test_the_published_index_reaches_the_target(budget: tuple[str, ...], published: Path) -> None:
    """On the golden queries, with the manifest's parameters, by the plainest count: with either budget."""
    info, vectors = verify_version(published).index, np.load(published / VECTORS)
    index = faiss.read_index(str(published / INDEX))
    settings = {name: info.search_parameters[name] for name in budget}
    parameters = faiss.SearchParametersIVF(nprobe=info.search_parameters["nprobe"])
    num_found = int(np.ceil(20 * info.search_parameters["k_factor"]))
    shares = []
    for interests_KD in GoldenQueries.read(published / GOLDEN).interests_QKD:
        results = plain_search(index, interests_KD, num_found, settings, parameters)
        pool = np.unique([row for row, _ in results])
        found = pool[np.argsort(-(vectors[pool] @ interests_KD.T).max(axis=1))][:20].tolist()
        exact = np.argsort(-(vectors @ interests_KD.T).max(axis=1))[:20]
        shares.append(len(set(found) & set(exact.tolist())) / 20)
    assert np.mean(shares) > TARGET.recall - 0.05


def test_a_flat_version_has_no_plot(tmp_path: Path) -> None:
    publish_run(FakeRun(), tmp_path, index="flat")
    assert not (live_version(tmp_path) / FRONTIER).exists()


def test_a_target_out_of_reach_publishes_nothing(large_run: FakeRun, tmp_path: Path) -> None:
    publish_run(FakeRun(), tmp_path, index="flat")
    old = live_version(tmp_path)
    with pytest.raises(ExportError, match="out of reach of HNSW2,Flat"):
        publish_run(
            large_run, tmp_path, index="HNSW2,Flat", target=RecallTarget(recall=1.0, num_candidates=20)
        )
    assert {path.name for path in tmp_path.iterdir()} == {CURRENT, old.name}


def test_an_index_that_servers_would_refuse_is_not_published(large_run: FakeRun, tmp_path: Path) -> None:
    """Tuned for one candidate, it finds too few of the golden queries' hundred."""
    with pytest.raises(ExportError, match=r"golden queries' 100, servers require 50%"):
        publish_run(
            large_run, tmp_path, index="IVF500,Flat", target=RecallTarget(recall=0.6, num_candidates=1)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("index", "target", "message"),
    [
        ("magic", TARGET, "or a FAISS factory string"),
        ("IVF16;rm", TARGET, "choose one of auto"),
        ("ivf", RecallTarget(recall=0.5, num_candidates=10), r"--recall is 0\.5; choose 0\.6 to 1"),
        ("ivf", RecallTarget(recall=1.01, num_candidates=10), "--recall is 1.01"),
        ("ivf", RecallTarget(recall=float("nan"), num_candidates=10), "--recall is nan"),
        ("ivf", RecallTarget(recall=0.9, num_candidates=0), "--num-candidates is 0"),
    ],
)
def test_wrong_words_are_refused_before_any_work(
    index: str, target: RecallTarget, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export_run(tmp_path / "no run", tmp_path / "bundles", VersionSettings(index=index, **vars(target)))
    assert not list(tmp_path.iterdir())


def test_a_factory_string_that_does_not_fit_the_width_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make an index of width 8"):
        publish_run(FakeRun(), tmp_path, index="IVF2,PQ3x4fs")
    assert not list(tmp_path.iterdir())


def test_fewer_items_than_candidates(tmp_path: Path) -> None:
    publish_run(
        FakeRun(num_items=30), tmp_path, index="hnsw", target=RecallTarget(recall=1.0, num_candidates=500)
    )
    info = verify_version(live_version(tmp_path)).index
    assert (info.kind, info.recall, info.num_candidates) == ("hnsw", 1.0, 30)


def test_a_single_history_tunes_and_judges(tmp_path: Path) -> None:
    publish_run(FakeRun(num_probes=1), tmp_path, index="ivf", target=TARGET)
    assert verify_version(live_version(tmp_path)).index.num_queries == 1


@pytest.mark.parametrize(
    ("num_items", "name"),
    [(1, "flat"), (MAX_FLAT_ITEMS, "flat"), (MAX_FLAT_ITEMS + 1, "ivf-pq"), (10**8, "ivf-pq")],
)
def test_auto_chooses_by_size_and_says_why_in_one_line(num_items: int, name: str) -> None:
    chosen, reason = choose_index(num_items)
    assert chosen == name
    assert f"{num_items:,} items" in reason
    assert "\n" not in reason
    assert IndexInfo(kind="flat", reason=reason).reason == reason


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dim", [7, 64])
def test_every_recipe_fits_every_width(name: str, dim: int) -> None:
    factory, reason = index_stages.factory_for(VersionSettings(index=name), 100_000, dim)
    assert factory
    assert reason is None


def test_the_choice_of_auto_is_logged_and_kept(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from re4.exporting.cli import export

    logged: list[str] = []
    monkeypatch.setattr(assembling._log, "info", logged.append)
    app = typer.Typer()
    app.command()(export)
    line = [str(tiny_run), "--bundles", str(tmp_path), "--index", "auto", "--json"]
    done = CliRunner().invoke(app, [*line, "--recall", "0.9", "--num-candidates", "7"])
    assert done.exit_code == 0, done.output
    index = json.loads(done.stdout)["index"]
    assert [line for line in logged if "index" in line] == [f"index Flat: {index['reason']}"]
    assert (index["recall_target"], index["num_candidates"]) == (0.9, 7)


@pytest.mark.parametrize(
    ("limit_gib", "factory", "reason"),
    [
        (None, "IVF32768,PQ64x4fsr", "short codes are the fastest"),
        (8, "IVF32768,PQ64x4fsr", "short codes are the fastest"),
        (3, "IVF32768,RaBitQ", "four-bit codes do not fit the memory limit"),
        (1, "IVF32768,PQ64x4fsr", "no kind fits the memory limit"),
    ],
)
def test_auto_keeps_to_the_memory_limit(limit_gib: int | None, factory: str, reason: str) -> None:
    limit = None if limit_gib is None else f"{limit_gib}GiB"
    chosen, why = index_stages.factory_for(VersionSettings(memory_limit=limit), 10**8, 64)
    assert chosen == factory
    assert reason in why
