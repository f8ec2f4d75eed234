"""How evenly this machine's processors run by themselves: a tail cannot be shorter than the machine's own.

A virtual machine's host may stop a processor, or slow it down, without any trace in the guest's accounts. So
a loop of fixed work runs for a while on each processor, in windows of two milliseconds, which are compared
with the faster ones among them.
"""

import os
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from re4.benchmarks.common.cores import on_core

_WINDOW_NS: Final = 2_000_000
_SLOW: Final = 0.5
"""Of the usual speed: a window below is slow."""
_SECONDS: Final = 2.0
"""For all processors together …"""
_LEAST_S: Final = 0.1
"""… and at least for each."""
_NOTABLE: Final = 0.005
"""Share of slow time from which a 99th percentile is in doubt."""


def measure_steadiness() -> dict[str, Any]:
    """Watch the processors that this process may use, one after the other, for two seconds or so in all.

    Returns:
        `slow_share`: of the time, in which the loop ran at less than half its usual speed, the
        upper quartile of its windows;
        `longest_slow_ms`, the longest stretch of that (both of the worst processor); `speed_spread`, the
        usual speed of the fastest processor as a multiple of the slowest one's.
    """
    cores = sorted(os.sched_getaffinity(0))
    found = []
    for core in cores:
        with on_core(core):
            found.append(summarise(*_windows(max(_SECONDS / len(cores), _LEAST_S))))
    speeds = [one["usual_speed"] for one in found]
    return {
        "slow_share": max(one["slow_share"] for one in found),
        "longest_slow_ms": max(one["longest_slow_ms"] for one in found),
        "speed_spread": max(speeds) / min(speeds),
    }


def summarise(turns: Sequence[int], nanoseconds: Sequence[int]) -> dict[str, float]:
    """One processor's windows, by how often the loop turned in each, and how long each took."""
    lengths = np.asarray(nanoseconds, np.float64)
    speeds = np.asarray(turns, np.float64) / lengths
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


def in_words(steadiness: dict[str, Any]) -> str:
    """What a reader of percentiles should know of the machine."""
    share, longest = steadiness["slow_share"], steadiness["longest_slow_ms"]
    text = f"below half its speed for {share:.1%} of the time, for {longest:.0f} ms at most"
    if share < _NOTABLE:
        return text
    return f"{text}: a 99th percentile below that is beyond what this machine can show"


def _windows(seconds: float) -> tuple[list[int], list[int]]:
    turns, lengths = [], []
    count, began = 0, time.perf_counter_ns()
    end = began + int(seconds * 1e9)
    now = began
    while now < end:
        now = time.perf_counter_ns()
        count += 1
        if now - began >= _WINDOW_NS:
            turns.append(count)
            lengths.append(now - began)
            count, began = 0, now
    return turns, lengths
