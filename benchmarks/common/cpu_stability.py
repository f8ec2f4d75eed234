"""How evenly this machine's CPUs run: a latency tail cannot be shorter than the machine's own pauses.

The host of a virtual machine may stop or slow down a CPU without a trace in the guest's accounts. A loop of
fixed work therefore runs on each CPU, and its windows of two milliseconds are compared with the faster ones.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from re4.benchmarks.common.pinning import on_core

_WINDOW_NS: Final = 2_000_000
_SLOW: Final = 0.5
"""A window below this share of the usual speed is slow."""
_SECONDS: Final = 2.0
"""For all CPUs together …"""
_MIN_SECONDS: Final = 0.1
"""… and at least for each."""
_NOTABLE: Final = 0.005
"""Share of slow time from which a 99th percentile is in doubt."""


def measure_cpu_stability() -> dict[str, Any]:
    """Measure the CPUs that this process may use, one after the other, for about two seconds in all.

    Returns:
        `slow_share`, the share of the time in which the loop ran at less than half its usual speed (the
        upper quartile of its windows), and `longest_slow_ms`, the longest such stretch, both of the worst
        CPU; `speed_spread`, the usual speed of the fastest CPU as a multiple of the slowest one's.
    """
    cores = sorted(os.sched_getaffinity(0))
    found = []
    for core in cores:
        with on_core(core):
            found.append(summarise(*_windows(max(_SECONDS / len(cores), _MIN_SECONDS))))
    speeds = [one["usual_speed"] for one in found]
    worst = {name: max(one[name] for one in found) for name in ("slow_share", "longest_slow_ms")}
    return {**worst, "speed_spread": max(speeds) / min(speeds)}


def summarise(iterations: Sequence[int], nanoseconds: Sequence[int]) -> dict[str, float]:
    """Summarise one CPU's windows, by the loop's iterations in each and by how long each took."""
    lengths = np.asarray(nanoseconds, np.float64)
    speeds = np.asarray(iterations, np.float64) / lengths
    # Not the median: where others share the core, every other window may be a slow one.
    usual = float(np.quantile(speeds, 0.75))
    is_slow = speeds < _SLOW * usual
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_slow, [False]])))
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    stretches = ends[edges[1::2]] - ends[edges[::2]]
    return {
        "usual_speed": usual,
        "slow_share": float(lengths[is_slow].sum() / lengths.sum()),
        "longest_slow_ms": float(stretches.max(initial=0.0)) / 1e6,
    }


def in_words(stability: Mapping[str, Any]) -> str:
    """Return the figures as text, with a warning where a 99th percentile is in doubt."""
    share, longest = stability["slow_share"], stability["longest_slow_ms"]
    text = f"below half its speed for {share:.1%} of the time, for {longest:.0f} ms at most"
    if share < _NOTABLE:
        return text
    return f"{text}: a 99th percentile below that is beyond what this machine can show"


def _windows(seconds: float) -> tuple[list[int], list[int]]:
    iterations, lengths = [], []
    count, began = 0, time.perf_counter_ns()
    end = began + int(seconds * 1e9)
    now = began
    while now < end:
        now = time.perf_counter_ns()
        count += 1
        if now - began >= _WINDOW_NS:
            iterations.append(count)
            lengths.append(now - began)
            count, began = 0, now
    return iterations, lengths
