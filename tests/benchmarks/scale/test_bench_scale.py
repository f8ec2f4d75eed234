"""A catalogue goes the whole way, and the report says what it took."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from re4.benchmarks.scale import stage_monitor
from re4.benchmarks.scale.cli import scale
from re4.benchmarks.scale.stage_monitor import StageMonitor
from re4.bundle.verify import verify_version


def test_a_small_catalogue_is_built_published_and_read(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(scale)
    line = ["--num-items", "500", "--embedding-dim", "8", "--index", "flat", "--num-candidates", "10"]
    done = CliRunner().invoke(app, [*line, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "scale.json").read_text())
    verify_version(tmp_path / "work" / "bundles" / report["version"])
    assert report["served_recall"] == 1.0
    names = [stage["name"] for stage in report["stages"]]
    assert names[0] == "drawing the catalogue"
    assert {"item vectors", "encoder", "golden queries", "checksums and publishing"} < set(names)
    assert all(stage["seconds"] > 0 and stage["peak_own_bytes"] > 1 << 20 for stage in report["stages"])
    assert len(report["readers"]) == 2
    assert report["readers"][1]["memory"]["after_ids"]["shared_bytes"] > 0
    text = (tmp_path / "out" / "scale.md").read_text()
    for words in (
        "# 500 items, D = 8",
        "| vectors.npy | 16,128 |",
        "**Process 2** loaded it",
        "Recall of 10",
    ):
        assert words in text


def test_parts_of_a_stage_are_stages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_monitor, "resident_bytes", iter([(5, 1), (7, 2), (6, 9), (1, 1)]).__next__)
    monitor = StageMonitor()
    monitor.begin("index")
    monitor.note("index, filling: 10%, 5 s left")
    monitor.note("index, filling: 90%, 1 s left")
    monitor.note("index, tuning")
    monitor.end()
    peaks = [(stage.name, stage.peak_own_bytes, stage.peak_resident_bytes) for stage in monitor.stages]
    assert peaks == [("index", 5, 6), ("index, filling", 7, 9), ("index, tuning", 6, 15)]


def test_memory_of_this_process_is_seen() -> None:
    own_before, _ = stage_monitor.resident_bytes()
    ballast = np.ones(8 << 20)
    assert stage_monitor.resident_bytes()[0] - own_before > 60 << 20
    assert ballast.all()
