"""Who was interrupted goes on; who builds something else begins afresh; nothing piles up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_samples import FakeRun, publish_run

from bundle.current import live_version
from bundle.layout import BUILDING_PREFIX, CURRENT, INDEX, STAGING_PREFIX
from bundle.retention import prune
from bundle.verify import verify_version
from export import assembling, checkpoints, indexing
from export.checkpoints import building_room
from export.tuning import Goal
from re4.errors import ExportError

GOAL = Goal(recall=0.8, num_candidates=20)
INDEX_KIND = "ivf-pq"


def left(bundles: Path, prefix: str = BUILDING_PREFIX) -> list[Path]:
    return sorted(bundles.glob(f"{prefix}*"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(checkpoints, "say", lines.append)
    return lines


def test_a_killed_export_goes_on_and_publishes_what_it_would_have(tmp_path: Path, told: list[str]) -> None:
    """Killed for real, in the middle of tuning: the index is not built again."""
    child = Path(__file__).parent / "export_and_die.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        died = subprocess.run(
            [sys.executable, str(child), str(tmp_path / "killed")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert len(left(tmp_path / "killed")) == 1  # however often
    publish_run(_run(), tmp_path / "killed", index=INDEX_KIND, goal=GOAL)
    assert told[-1].startswith("going on where a build was interrupted, with filled.faiss, trained.faiss")
    publish_run(_run(), tmp_path / "calm", index=INDEX_KIND, goal=GOAL)
    versions = [live_version(tmp_path / name) for name in ("killed", "calm")]
    files = [
        {entry.name: entry.sha256 for entry in verify_version(path).files if entry.name != "frontier.png"}
        for path in versions
    ]
    assert files[0] == files[1]
    for name in ("killed", "calm"):
        assert not left(tmp_path / name) + left(tmp_path / name, STAGING_PREFIX)


def _run() -> FakeRun:
    return FakeRun(num_items=3000, num_probes=100)


def test_what_was_tuned_is_not_tuned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assembling.Assembled, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            publish_run(_run(), tmp_path, index=INDEX_KIND, goal=GOAL)
    (folder,) = left(tmp_path)
    tuned = json.loads(next(folder.glob("tuned-*.json")).read_text())
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "tune", stop)
        publish_run(_run(), tmp_path, index=INDEX_KIND, goal=GOAL)
    assert verify_version(live_version(tmp_path)).index.model_dump(mode="json") == tuned
    assert not left(tmp_path)


def test_another_goal_is_tuned_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupt(tmp_path, monkeypatch)
    publish_run(_run(), tmp_path, index=INDEX_KIND, goal=Goal(recall=0.7, num_candidates=10))
    assert verify_version(live_version(tmp_path)).index.recall_target == 0.7


def _interrupt(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assembling.Assembled, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            publish_run(_run(), bundles, index=INDEX_KIND, goal=GOAL)


@pytest.mark.parametrize("what", ["vectors", "index"])
def test_stages_of_something_else_are_discarded_with_notice(
    what: str, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt(tmp_path, monkeypatch)
    (old,) = left(tmp_path)
    run = _run()
    if what == "vectors":
        run.vectors_ND[7, 3] += 0.5
    publish_run(run, tmp_path, index="ivf" if what == "index" else INDEX_KIND, goal=GOAL)
    assert told == [f"{old}: left by an interrupted build of something else: discarded"]
    assert {path.name for path in tmp_path.iterdir()} == {CURRENT, live_version(tmp_path).name}


def test_a_goal_out_of_reach_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="out of reach"):
        publish_run(_run(), tmp_path, index="HNSW2,Flat", goal=Goal(recall=1.0, num_candidates=20))
    assert not list(tmp_path.iterdir())


def test_a_build_at_work_is_left_alone(tmp_path: Path, told: list[str]) -> None:
    with building_room(tmp_path) as mine:
        stages = mine.stages({"of": "mine"})
        with stages.finishing("first") as part:
            part.write_bytes(b"1")
        with building_room(tmp_path) as another:
            another.stages({"of": "another"})
            assert len(left(tmp_path)) == 2
        with (
            pytest.raises(ExportError, match="another process is building this very index"),
            building_room(tmp_path) as same,
        ):
            same.stages({"of": "mine"})
        assert stages.has("first")
    assert not left(tmp_path)
    assert not told


def test_half_written_stages_are_none(tmp_path: Path) -> None:
    def die_at_work() -> None:
        with building_room(tmp_path) as room:
            stages = room.stages({})
            with stages.finishing("whole") as part:
                part.write_bytes(b"all of it")
            (stages.folder / ".half.123.part").write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_at_work()
    with building_room(tmp_path) as room:
        stages = room.stages({})
        assert stages.has("whole")
        assert not stages.has("half")
        assert not list(stages.folder.glob(".*"))


def test_pruning_removes_what_interrupted_builds_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_run(FakeRun(), tmp_path, index="flat")
    _interrupt(tmp_path, monkeypatch)
    with building_room(tmp_path) as room:
        at_work = room.stages({"at": "work"}).folder
        (tmp_path / f"{BUILDING_PREFIX}0123").mkdir()
        prune(tmp_path, num_kept=1)
        assert left(tmp_path) == [at_work]


def test_the_index_in_the_version_outlives_the_stages(tmp_path: Path) -> None:
    publish_run(_run(), tmp_path, index="ivf", goal=GOAL)
    path = live_version(tmp_path) / INDEX
    assert path.stat().st_nlink == 1
    assert np.fromfile(path, np.uint8).size == path.stat().st_size
