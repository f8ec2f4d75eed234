"""`re4 bench overload`: a short one on a real server, and what the figures mean."""

import json
from pathlib import Path

import pytest
from small_bundles import SmallVersion

from re4.benchmarks.overload import benchmark
from re4.benchmarks.overload.benchmark import ProbeCall, missed, percentile_s, recovery_s, run
from re4.benchmarks.overload.cli import overload
from re4.benchmarks.overload.options import OverloadOptions
from re4.common.errors import UsageError


def calls(*outcomes: tuple[float, float, bool]) -> list[ProbeCall]:
    return [ProbeCall(*outcome) for outcome in outcomes]


def test_a_server_is_back_from_the_first_call_of_a_second_without_a_fault() -> None:
    after = [(100 + i / 10, 0.01, True) for i in range(30)]
    assert recovery_s(calls(*after), 100.0, normal_s=0.05) == 0
    after[3] = (100.3, 0.01, False)
    after[5] = (100.5, 0.30, True)
    assert recovery_s(calls(*after), 100.0, normal_s=0.05) == pytest.approx(0.6)
    assert recovery_s(calls(*after[:12]), 100.0, normal_s=0.05) is None
    assert recovery_s([], 100.0, normal_s=0.05) is None


def test_failed_calls_are_slower_than_any_answer() -> None:
    probed = calls((1, 0.1, True), (2, 0.001, False), (3, 0.2, True))
    assert percentile_s(probed, 50) == 0.2
    assert percentile_s(probed, 99) == float("inf")


def test_missed_goals_are_named() -> None:
    good = {"goodput_ratio": 0.9, "recovery_s": 0.4, "stopped": None}
    assert missed(good) == []
    assert "goodput 70% of the peak" in missed(good | {"goodput_ratio": 0.7})[0]
    assert "never" in missed(good | {"recovery_s": None})[0]
    assert "3.0 s" in missed(good | {"recovery_s": 3.0})[0]


def test_a_short_overload_is_reported_whatever_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("_PEAK_WARMUP_S", 0.2), ("_QUIET_S", 0.5), ("_RECOVERY_TIMEOUT_S", 1.5)):
        monkeypatch.setattr(benchmark, name, seconds)
    bundles = tmp_path / "bundles"
    SmallVersion(num_items=500).publish(bundles)
    options = OverloadOptions(
        bundles=bundles,
        num_candidates=10,
        server_options="--max-queue-ms 50",
        seconds=1.0,
        peak_seconds=0.5,
        out=tmp_path / "out",
    )
    run(options)  # a busy machine may miss the goals: no test of them
    report = json.loads((tmp_path / "out" / "overload.json").read_text())
    assert report["offered_per_s"] > 2 * report["peak_per_s"]["before"]
    assert report["goodput_ratio"] > 0
    assert report["server"]["options"] == ["--max-queue-ms", "50"]
    assert report["accepted_ms"]["p99"] > 0
    assert report["server"]["info"]["num_processes"] == 1


def test_nothing_to_offer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--factor is 0; the smallest value"):
        overload(bundles=tmp_path, factor=0)
