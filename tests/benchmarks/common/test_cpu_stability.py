"""The machine's own pauses: found in synthetic windows, and on a core that other processes keep busy."""

import os
import subprocess
import sys

import pytest

from re4.benchmarks.common import cpu_stability
from re4.benchmarks.common.cpu_stability import in_words, measure_cpu_stability, summarise

_MS = 1_000_000


def test_even_windows_are_not_slow() -> None:
    found = summarise([100] * 50, [2 * _MS] * 50)
    assert found["slow_share"] == 0.0
    assert found["longest_slow_ms"] == 0.0
    assert found["usual_speed"] == pytest.approx(100 / (2 * _MS))


def test_slow_time_counts_by_its_length() -> None:
    # Three slow windows in a row, a stop that makes one window 14 ms long, then one more slow one by itself.
    turns = [100] * 20 + [10] * 3 + [100] * 20 + [100] + [100] * 5 + [40]
    lengths = [2 * _MS] * 43 + [14 * _MS] + [2 * _MS] * 6
    found = summarise(turns, lengths)
    assert found["slow_share"] == pytest.approx((3 * 2 + 14 + 2) / (49 * 2 + 14))
    assert found["longest_slow_ms"] == pytest.approx(14)


def test_words_warn_where_a_tail_is_in_doubt() -> None:
    calm = {"slow_share": 0.001, "longest_slow_ms": 3.0, "speed_spread": 1.0}
    assert in_words(calm) == "below half its speed for 0.1% of the time, for 3 ms at most"
    assert "beyond what this machine can show" in in_words(
        calm | {"slow_share": 0.02, "longest_slow_ms": 28.0}
    )


def test_a_core_that_is_shared_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others on the same core take turns with the loop, in slices of milliseconds."""
    monkeypatch.setattr(cpu_stability, "_SECONDS", 2.0)
    before = os.sched_getaffinity(0)
    core = min(before)
    hogs = [
        subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
        )
        for _ in range(3)
    ]
    try:
        os.sched_setaffinity(0, {core})
        found = measure_cpu_stability()
    finally:
        os.sched_setaffinity(0, before)
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert found["slow_share"] > 0.2
    assert found["longest_slow_ms"] > 2
    assert found["speed_spread"] == 1.0


def test_the_affinity_is_left_as_it_was() -> None:
    before = os.sched_getaffinity(0)
    found = measure_cpu_stability()
    assert os.sched_getaffinity(0) == before
    assert 0 <= found["slow_share"] <= 1
