"""An interrupted build goes on, a build of something else begins afresh, and nothing piles up."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_samples import FakeRun, interrupted_run, publish_run

from re4.bundle.layout import BUILDING_PREFIX, CURRENT, INDEX, STAGING_PREFIX
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.retention import prune
from re4.bundle.verify import verify_version
from re4.common.errors import ExportError
from re4.exporting import assemble as assembling
from re4.exporting.index import index_stages
from re4.exporting.settings import RecallTarget
from re4.exporting.storage import build_cache as checkpoints
from re4.exporting.storage.build_cache import BuildCache

TARGET = RecallTarget(recall=0.8, num_candidates=20)
INDEX_KIND = "ivf-pq"


def left(bundles: Path, prefix: str = BUILDING_PREFIX) -> list[Path]:
    return sorted(bundles.glob(f"{prefix}*"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(checkpoints._log, "info", lines.append)
    return lines


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle directory whose first build was tuned, and interrupted just before it was published."""
    bundles = tmp_path_factory.mktemp("interrupted")
    interrupt(assembling.AssembledVersion, "publish", bundles)
    return bundles


@pytest.fixture
def bundles(interrupted: Path, tmp_path: Path) -> Path:
    """The same, for a test to go on with."""
    return shutil.copytree(interrupted, tmp_path / "bundles")


def stop(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def interrupt(owner: object, step: str, bundles: Path) -> None:
    """Build until a step is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, step, stop)
        with pytest.raises(KeyboardInterrupt):
            publish_run(interrupted_run(), bundles, index=INDEX_KIND, target=TARGET)


def test_a_killed_export_goes_on_and_publishes_what_it_would_have(tmp_path: Path, logged: list[str]) -> None:
    """Killed for real, in the middle of tuning, and then interrupted there: the index is not built again."""
    child = Path(__file__).parents[1] / "export_and_die.py"
    died = subprocess.run(
        [sys.executable, str(child), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    (folder,) = left(tmp_path / "killed")
    interrupt(index_stages, "tune", tmp_path / "killed")
    assert left(tmp_path / "killed") == [folder]  # however often
    publish_run(interrupted_run(), tmp_path / "killed", index=INDEX_KIND, target=TARGET)
    assert len(logged) == 2
    for line in logged:
        assert line.startswith("going on where a build was interrupted, with filled.faiss, trained.faiss")
    publish_run(interrupted_run(), tmp_path / "calm", index=INDEX_KIND, target=TARGET)
    versions = [live_version(tmp_path / name) for name in ("killed", "calm")]
    files = [
        {entry.name: entry.sha256 for entry in verify_version(path).files if entry.name != "frontier.png"}
        for path in versions
    ]
    assert files[0] == files[1]
    for name in ("killed", "calm"):
        assert not left(tmp_path / name) + left(tmp_path / name, STAGING_PREFIX)


def test_a_tuned_index_is_not_tuned_again(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = left(bundles)
    tuned = json.loads(next(folder.glob("tuned-*.json")).read_text())
    monkeypatch.setattr(index_stages, "tune", stop)
    publish_run(interrupted_run(), bundles, index=INDEX_KIND, target=TARGET)
    assert verify_version(live_version(bundles)).index.model_dump(mode="json") == tuned
    assert not left(bundles)


def test_another_target_is_tuned_for_again(bundles: Path) -> None:
    publish_run(
        interrupted_run(), bundles, index=INDEX_KIND, target=RecallTarget(recall=0.7, num_candidates=10)
    )
    assert verify_version(live_version(bundles)).index.recall_target == 0.7


@pytest.mark.parametrize("what", ["vectors", "index"])
def test_stages_of_something_else_are_discarded_with_notice(
    what: str, bundles: Path, logged: list[str]
) -> None:
    (old,) = left(bundles)
    run = interrupted_run()
    if what == "vectors":
        run.vectors_ND[7, 3] += 0.5
    publish_run(run, bundles, index="ivf" if what == "index" else INDEX_KIND, target=TARGET)
    assert logged == [f"{old}: left by an interrupted build of something else: discarded"]
    assert {path.name for path in bundles.iterdir()} == {CURRENT, live_version(bundles).name}


def test_a_build_at_work_is_left_alone(tmp_path: Path, logged: list[str]) -> None:
    with BuildCache(tmp_path) as mine:
        stages = mine.checkpoints({"of": "mine"})
        with stages.finishing("first") as part:
            part.write_bytes(b"1")
        with BuildCache(tmp_path) as another:
            another.checkpoints({"of": "another"})
            assert len(left(tmp_path)) == 2
        with (
            pytest.raises(ExportError, match="another process is building this very index"),
            BuildCache(tmp_path) as same,
        ):
            same.checkpoints({"of": "mine"})
        assert stages.has("first")
    assert not left(tmp_path)
    assert not logged


def test_half_written_stages_are_none(tmp_path: Path) -> None:
    def die_at_work() -> None:
        with BuildCache(tmp_path) as cache:
            stages = cache.checkpoints({})
            with stages.finishing("whole") as part:
                part.write_bytes(b"all of it")
            (stages.folder / ".half.123.part").write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_at_work()
    with BuildCache(tmp_path) as cache:
        stages = cache.checkpoints({})
        assert stages.has("whole")
        assert not stages.has("half")
        assert not list(stages.folder.glob(".*"))


def test_pruning_removes_what_interrupted_builds_left(interrupted: Path, tmp_path: Path) -> None:
    publish_run(FakeRun(), tmp_path, index="flat")
    with BuildCache(tmp_path) as cache:
        at_work = cache.checkpoints({"at": "work"}).folder
        shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
        (tmp_path / f"{BUILDING_PREFIX}0123").mkdir()
        assert len(left(tmp_path)) == 3
        prune(tmp_path, num_kept=1)
        assert left(tmp_path) == [at_work]


def test_the_index_in_the_version_outlives_the_stages(bundles: Path) -> None:
    publish_run(interrupted_run(), bundles, index=INDEX_KIND, target=TARGET)
    path = live_version(bundles) / INDEX
    assert path.stat().st_nlink == 1
    assert np.fromfile(path, np.uint8).size == path.stat().st_size
