"""The picture of a comparison: the 99th percentile against load, all systems on the same axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from re4.benchmarks.peers.comparison import figures_of

_DPI: Final = 130
_STYLES: Final = ("-", "--")
_COLOURS: Final = {"re4": "tab:red", "triton": "tab:green", "two-hop": "tab:blue", "fastapi": "tab:orange"}
_HIGHEST: Final = 50
"""The axis of latencies ends at so many objectives."""


def _curve(part: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return rates, ascending, with the 99th percentile at each, as it was measured last."""
    found = {
        point["rate_per_s"]: (point["achieved_per_s"]["mean"], point["latency_ms"]["p99"]["pooled"])
        for point in part["points"]
        if point["loop"] == "open"
    }
    return sorted(pair for pair in found.values() if pair[1] is not None)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG; the report is the JSON object, with at least one system."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    objective_ms = report["terms"]["p99_ms"]
    seen: dict[str, int] = {}
    for part in report["systems"]:
        number = seen[part["system"]] = seen.get(part["system"], -1) + 1
        known = _curve(part)
        colour = _COLOURS.get(part["system"])
        axes.plot(
            [rate for rate, _ in known],
            [ms for _, ms in known],
            _STYLES[number % len(_STYLES)],
            marker=".",
            color=colour,
            label=f"{part['title']}, {part['setting']}",
        )
        one = figures_of(part)
        if one["sustained_per_s"] is not None:
            axes.plot([one["sustained_per_s"]["mean"]], [one["p99_ms"]], "o", markersize=9, color=colour)
    axes.axhline(objective_ms, color="grey", linestyle=":", label=f"objective, {objective_ms:g} ms")
    if report["in_process"] is not None:
        limit = report["in_process"]["per_s"]
        axes.axvline(
            limit, color="black", linestyle="-.", linewidth=1, label="the pipeline alone, in batches"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(top=_HIGHEST * objective_ms)
    axes.set(xlabel="answers per second (one core for the server)", ylabel="99th percentile of latency, ms")
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize="small", loc="upper left")
    note = "" if report["status"] == "complete" else "  [PARTIAL]"
    axes.set_title(
        f"{report['bundle']['items']['num_items']:,} items, {report['terms']['num_candidates']} candidates, "
        f"recall ≥ {report['terms']['min_recall']:g}; ● sustained{note}"
    )
    figure.savefig(path, format="png", dpi=_DPI)
