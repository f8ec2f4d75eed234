"""The picture of a report: latency against load, the percentile spectrum, and time by stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from re4.benchmarks.load_generator.call_stats import ELSEWHERE
from re4.benchmarks.load_generator.transport import STAGES

_DPI: Final = 130
_LINES: Final = ("p50", "p99", "p99.9")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG; the report is the JSON object, with at least one answered point."""
    points = sorted(
        (point for point in report["points"] if point["num_answered"] and point["achieved_per_s"]),
        key=lambda point: float(point["achieved_per_s"]["mean"]),
    )
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    load, spectrum, stages = figure.subplots(1, 3)
    _draw_load(load, points, report)
    _draw_spectrum(spectrum, points)
    _draw_stages(stages, points)
    note = "" if report["status"] == "complete" else f"  [{str(report['status']).upper()}]"
    info = report["server"]["info"]
    figure.suptitle(f"{info['model']}, {info['num_items']:,} items, index {info['index']}{note}")
    figure.savefig(path, format="png", dpi=_DPI)


def _draw_load(axes: Axes, points: list[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    for name in _LINES:
        x = [point["achieved_per_s"]["mean"] for point in points]
        y = [point["latency_ms"][name]["pooled"] for point in points]
        axes.plot(x, [np.nan if value is None else value for value in y], marker="o", label=name)
    if report["knee"] is not None:
        objective_ms = report["knee"]["p99_objective_ms"]
        axes.axhline(objective_ms, color="grey", linestyle=":", label=f"objective {objective_ms:g} ms")
    _in_ms(axes)
    axes.set(title="Latency against load", xlabel="answers per second")
    axes.legend()


def _draw_spectrum(axes: Axes, points: list[Mapping[str, Any]]) -> None:
    for point in points:
        known = [
            (percent, ms) for percent, ms in point["spectrum_ms"] if ms is not None and 50 <= percent < 100
        ]
        if known:
            x = [1 / (1 - percent / 100) for percent, _ in known]
            axes.plot(x, [ms for _, ms in known], label=f"{point['label']} ({point['loop']} loop)")
    ticks = (50, 90, 99, 99.9, 99.99)
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - tick / 100) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.set_xticks([], minor=True)
    _in_ms(axes)
    axes.set(title="Percentiles", xlabel="share of calls that were at least as fast")
    if axes.has_data():  # failed calls may take up all of it
        axes.legend(fontsize="small")


def _draw_stages(axes: Axes, points: list[Mapping[str, Any]]) -> None:
    bottom = np.zeros(len(points))
    labels = [point["label"] for point in points]
    for stage in (*STAGES, ELSEWHERE):
        heights = np.array([point["stages_us"][stage]["mean"] / 1000 for point in points])
        axes.bar(np.arange(len(points)), heights, bottom=bottom, label=stage)
        bottom += heights
    axes.set_xticks(np.arange(len(points)), labels, rotation=30, ha="right")
    axes.set(title="Where the time goes (mean)", ylabel="ms")
    axes.legend(fontsize="small")


def _in_ms(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.grid(which="both", alpha=0.25)
