"""From a run to a server, with every kind of index: callers get the recall that the manifest states."""

from pathlib import Path

import numpy as np
import pytest
from run_samples import FakeRun, publish_run
from running_server import RunningServer

from re4 import RetrievalClient
from re4.bundle.golden import GoldenQueries
from re4.bundle.layout import GOLDEN, INDEX, VECTORS
from re4.bundle.manifest import IndexInfo
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.publish import StagedVersion
from re4.bundle.verify import verify_version
from re4.common.errors import BundleMismatchError
from re4.exporting.index.build import build_index
from re4.exporting.index.index_names import RECIPES
from re4.exporting.settings import RecallTarget
from re4.serving.settings import ServerSettings
from re4.serving.versions.version_check import load_and_try

TARGET = RecallTarget(recall=0.8, num_candidates=20)


@pytest.fixture(scope="module")
def large_run() -> FakeRun:
    return FakeRun(num_items=3000, num_probes=80)


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_passes_a_servers_check(name: str, large_run: FakeRun, tmp_path: Path) -> None:
    publish_run(large_run, tmp_path, index=name, target=TARGET)
    load_and_try(live_version(tmp_path), ServerSettings(max_batch_size=8))


def test_callers_get_the_recall_of_the_manifest(large_run: FakeRun, tmp_path: Path) -> None:
    publish_run(large_run, tmp_path, index="ivf-pq", target=TARGET)
    path = live_version(tmp_path)
    golden, vectors = GoldenQueries.read(path / GOLDEN), np.load(path / VECTORS)
    shares = []
    with RunningServer(tmp_path) as server, RetrievalClient(server.address) as client:
        for rows, length, interests_KD in zip(
            golden.rows_QL, golden.lengths_Q, golden.interests_QKD, strict=True
        ):
            history = [f"item {row}" for row in rows[:length][::-1]]
            found = client.retrieve(history, 20).item_ids
            exact = np.argsort(-(vectors @ interests_KD.T).max(axis=1))[:20]
            shares.append(len(set(found) & {f"item {row}" for row in exact}) / 20)
    assert np.mean(shares) > TARGET.recall - 0.05
    assert np.mean(shares) < 1, "an index that finds everything shows nothing"


def test_an_index_that_finds_too_little_is_refused(
    large_run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published past the exporter's own check: the server looks for itself."""
    publish = StagedVersion.publish

    def spoil(staged: StagedVersion, **parts: object) -> str:
        import faiss

        index = build_index("IVF25,Flat", np.load(staged.path / VECTORS)).index
        faiss.write_index(index, str(staged.path / INDEX))
        info = IndexInfo(kind="ivf", search_parameters={"nprobe": 1, "k_factor": 1, "pool_factor": 1})
        return publish(staged, **{**parts, "index": info})

    monkeypatch.setattr(StagedVersion, "publish", spoil)
    publish_run(large_run, tmp_path, index="ivf", target=TARGET)
    assert verify_version(live_version(tmp_path)).index.recall is None
    with pytest.raises(BundleMismatchError, match=r"a ivf index must find 50\.00%"):
        load_and_try(live_version(tmp_path), ServerSettings(max_batch_size=8))
