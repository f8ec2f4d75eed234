"""`re4 bench overhead`: a server beside a null server and the bare pipeline, and two servers in pairs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallVersion

from re4.benchmarks.overhead.benchmark import run
from re4.benchmarks.overhead.encoder_cost import main as encoder_cost
from re4.benchmarks.overhead.options import OverheadOptions
from re4.benchmarks.overhead.report import TARGETS, ratios, shares, summary
from re4.common.errors import UsageError


@pytest.fixture
def options(tmp_path: Path) -> OverheadOptions:
    SmallVersion().publish(tmp_path / "bundles")
    return OverheadOptions(
        bundles=tmp_path / "bundles", num_rounds=1, seconds=0.1, num_candidates=5, out=tmp_path / "out"
    )


def served(saturated_us: float, p50_us: float, batch_us: float | None) -> dict[str, Any]:
    def times(wall_us: float | None) -> dict[str, float] | None:
        return None if wall_us is None else {"wall_us": wall_us, "cpu_us": wall_us}

    return {"saturated": times(saturated_us), "p50_us": p50_us, "batch": times(batch_us)}


def test_a_round_measures_all_three_and_says_what_each_share_is_made_of(
    options: OverheadOptions, tmp_path: Path
) -> None:
    report = run(options)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert len(report["rounds"]) == 1
    assert all(figures["median"] > 0 for figures in (*report["figures"].values(), *report["times"].values()))
    assert report["goals"].keys() == report["figures"].keys()
    text = (tmp_path / "out/report.md").read_text()
    assert report["command"] in text
    assert all(target.text in text for target in TARGETS.values())


def test_two_servers_are_compared_in_pairs(options: OverheadOptions, tmp_path: Path) -> None:
    SmallVersion(seed=1).publish(tmp_path / "others")
    report = run(replace(options, against=tmp_path / "others", num_rounds=2))
    assert len(report["pairs"]) == 2
    assert not report["rounds"]
    assert all(ratio["low"] <= ratio["mean"] <= ratio["high"] for ratio in report["ratios"].values())
    assert report["against"]["version"] in (tmp_path / "out/report.md").read_text()


def test_shares_are_what_they_are_said_to_be() -> None:
    bare = {"single_us": 400, "batched_us": 300, "single_cpu_us": 400, "batched_cpu_us": 300}
    one = {"bare": bare, "null": served(200, 500, None), "served": served(1000, 1800, 400)}
    found = shares(one)
    assert found["throughput_share"] == pytest.approx(0.5)
    assert found["p50_multiple"] == pytest.approx(2.0)
    assert found["batch_share"] == pytest.approx(0.75)
    goals = summary([one], [])["goals"]
    assert not any(goals[name]["is_met"] for name in ("throughput_share", "p50_multiple", "batch_share"))


def test_the_cost_of_encoders_has_a_row_for_each_version(
    options: OverheadOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SmallVersion(seed=1).publish(tmp_path / "others")
    encoder_cost([options.bundles, tmp_path / "others"], num_rounds=1, seconds=0.01)
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) == 2
    assert all(float(cell.replace(",", "")) > 0 for line in lines for cell in line[1:])


def test_a_ratio_above_one_means_that_the_first_server_is_slower() -> None:
    pair = {"served": served(1100, 1000, 300), "against": served(1000, 1000, 400)}
    assert ratios(pair) == pytest.approx(
        {"saturated_us": 1.1, "p50_us": 1.0, "batch_us": 0.75, "cpu_us": 1.1}
    )


def test_one_core_is_too_few(
    options: OverheadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("re4.benchmarks.common.pinning.os.sched_getaffinity", lambda _: {0})
    with pytest.raises(UsageError, match="needs two cores"):
        run(options)
    assert not (tmp_path / "out").exists()
