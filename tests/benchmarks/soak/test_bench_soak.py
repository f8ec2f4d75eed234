"""`re4 bench soak`: minute by minute, and what it calls drift."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallVersion

from re4.benchmarks.load_generator.load import Timing
from re4.benchmarks.soak import benchmark
from re4.benchmarks.soak.benchmark import drift, run
from re4.benchmarks.soak.cli import soak
from re4.benchmarks.soak.options import SoakOptions
from re4.common.errors import UsageError


def minute(number: int, *, p99_ms: float | None, pss_bytes: int) -> dict[str, Any]:
    sizes = {"rss_bytes": 200 << 20, "pss_bytes": pss_bytes, "num_open_files": 20}
    return {"number": number, "p50_ms": 1.0, "p99_ms": p99_ms, **sizes}


def test_drift_is_the_slope_of_all_minutes_but_the_first() -> None:
    minutes = [minute(1, p99_ms=500.0, pss_bytes=0)]
    minutes += [
        minute(number, p99_ms=2.0 + number / 60, pss_bytes=(100 + number) << 20) for number in range(2, 8)
    ]
    found = drift(minutes)
    assert found["p99_ms_per_hour"] == pytest.approx(1.0)
    assert found["pss_mib_per_hour"] == pytest.approx(60.0)
    assert found["p50_ms_per_hour"] == pytest.approx(0.0, abs=1e-9)
    assert found["open_files_per_hour"] == pytest.approx(0.0, abs=1e-9)
    assert drift(minutes[:3])["p99_ms_per_hour"] is None


def test_minutes_whose_percentile_is_among_failed_calls_have_no_part_in_its_drift() -> None:
    minutes = [minute(number, p99_ms=3.0, pss_bytes=1) for number in range(1, 6)]
    minutes[2] = minute(3, p99_ms=None, pss_bytes=1)
    assert drift(minutes)["p99_ms_per_hour"] == pytest.approx(0.0, abs=1e-9)


def test_a_short_soak_of_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark, "_SATURATION_TIMING", Timing(warmup_s=0.1, duration_s=0.3, deadline_s=30.0)
    )
    monkeypatch.setattr(benchmark, "_MINUTE_S", 0.3)
    SmallVersion().publish(tmp_path / "bundles")
    options = SoakOptions(
        bundles=tmp_path / "bundles", num_candidates=5, minutes=4, share=0.2, out=tmp_path / "out"
    )
    report = run(options)
    assert json.loads((tmp_path / "out" / "soak.json").read_text()) == report
    assert report["status"] == "complete"
    assert report["rate_per_s"] == pytest.approx(0.2 * report["saturated_per_s"])
    assert [each["number"] for each in report["minutes"]] == [1, 2, 3, 4]
    for each in report["minutes"]:
        assert each["num_calls"] > 0
        assert each["rss_bytes"] >= each["pss_bytes"] > 0
        assert each["num_open_files"] > 0
    assert report["drift"]["pss_mib_per_hour"] is not None


@pytest.mark.parametrize("words", [{"minutes": 0}, {"share": 1.0}, {"share": 0.0}])
def test_wrong_words(words: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(words))):
        soak(bundles=tmp_path, **words)
