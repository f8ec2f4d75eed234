"""`re4 bench index` says what each kind finds and how fast, and why a peer is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from re4.benchmarks.common import peer_environments
from re4.benchmarks.index.benchmark import split_kinds
from re4.benchmarks.index.inputs import THRESHOLDS, VECTORS
from re4.benchmarks.index.report import best_at, pareto
from re4.cli import build_app
from re4.common.errors import UsageError


def bench(folder: Path, *words: str) -> dict:
    line = ["bench", "index", "--work", str(folder / "work"), "--out", str(folder / "out"), "--json"]
    done = CliRunner().invoke(
        build_app(["bench", "index"]),
        [*line, "--num-items", "2000", "--num-requests", "16", "--num-candidates", "10", *words],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_kinds_and_a_missing_peer_in_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_environments, "BASELINES", tmp_path / "nowhere")
    report = bench(tmp_path, "--kinds", "flat,ivf,IVF16,PQ32x4fsr", "--peers", "scann")
    flat, ivf, codes, scann = report["engines"]
    assert [one["engine"] for one in (flat, ivf, codes)] == ["flat", "ivf", "IVF16,PQ32x4fsr"]
    assert [point["recall"] for point in flat["points"]] == [1.0]
    assert max(point["recall"] for point in ivf["points"]) > 0.98
    assert codes["bytes_per_item"] < 100 < 256 <= flat["bytes_per_item"]
    assert "make peers" in scann["skipped"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.json", "index.md", "index.png"}
    text = (tmp_path / "out" / "index.md").read_text()
    assert "skipped: no environment" in text
    assert (tmp_path / "out" / "index.png").read_bytes().startswith(b"\x89PNG")

    vectors, thresholds = (np.load(tmp_path / "work" / name) for name in (VECTORS, THRESHOLDS))
    assert vectors.shape == (2000, 64)
    assert thresholds.shape == (16,)
    with pytest.raises(UsageError, match="vectors for something else"):
        bench(tmp_path, "--num-items", "3000", "--kinds", "flat")


def test_parts_that_were_measured_one_after_another_make_one_report(tmp_path: Path) -> None:
    bench(tmp_path, "--kinds", "flat")
    bench(tmp_path, "--kinds", "ivf", "--threads", "1,2")
    bench(tmp_path, "--kinds", "flat", "--num-candidates", "5", "--work", str(tmp_path / "another question"))
    apart = bench(tmp_path, "--kinds", "IVF16,Flat")
    assert [one["engine"] for one in apart["engines"]] == ["IVF16,Flat"]
    report = bench(tmp_path, "--kinds", "none", "--combine")
    assert [one["engine"] for one in report["engines"]] == ["flat", "ivf", "IVF16,Flat"]
    assert report["threads"] == [1, 2]
    assert {point["threads"] for point in report["engines"][1]["points"]} == {1, 2}
    assert "| flat | not measured |" in (tmp_path / "out" / "index.md").read_text()
    again = bench(tmp_path, "--kinds", "flat", "--combine")
    assert [one["engine"] for one in again["engines"]] == ["ivf", "IVF16,Flat", "flat"]
    assert len(again["engines"][2]["points"]) == 1, "the newer measurement takes the older one's place"


def test_the_budget_of_lists_is_compared_with_an_equal_one(tmp_path: Path) -> None:
    words = ("--kinds", "flat,ivf", "--equal-budget", "--num-interests", "3")
    report = bench(tmp_path, *words)
    assert report["num_interests"] == 3
    assert [one["engine"] for one in report["engines"]] == ["flat", "ivf", "ivf (equal budget)"]
    _, shared, equal = (
        {name for point in one["points"] for name in point["search_parameters"]} for one in report["engines"]
    )
    assert (shared - equal, equal - shared) == ({"shared_nprobe", "reach_drop"}, {"nprobe"})


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--peers milvus: there are hnswlib"):
        bench(tmp_path, "--peers", "milvus")
    with pytest.raises(UsageError, match="--threads many"):
        bench(tmp_path, "--threads", "many")


def test_commas_belong_to_factory_strings() -> None:
    assert split_kinds("flat,IVF64,PQ8x4fs,RFlat,hnsw,HNSW8,Flat") == [
        "flat",
        "IVF64,PQ8x4fs,RFlat",
        "hnsw",
        "HNSW8,Flat",
    ]


def test_the_best_point_is_the_fastest_that_reaches_the_recall() -> None:
    points = [
        {"threads": threads, "recall": recall, "request_us": us}
        for threads, recall, us in [(1, 0.9, 5), (1, 0.96, 9), (1, 0.99, 8), (2, 0.99, 1), (1, 0.95, 12)]
    ]
    assert best_at({"points": points}, 1) == points[2]
    assert best_at({"points": points[:1]}, 1) is None
    assert pareto([point for point in points if point["threads"] == 1]) == [points[0], points[2]]
