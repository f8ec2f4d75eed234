"""The plot of a frontier: recall against requests per second, with the target and the chosen setting."""

from pathlib import Path
from typing import Final

from re4.bundle.manifest import IndexInfo

FRONTIER: Final = "frontier.png"
"""Name of the file in a version."""


def draw_frontier(info: IndexInfo, path: Path) -> None:
    """Draw the frontier of a tuned index as a PNG."""
    # Not pyplot: it keeps every figure, and chooses a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    recalls = [point.recall for point in info.frontier]
    rates = [1e6 / point.request_us for point in info.frontier]
    axes.plot(recalls, rates, marker="o", label=f"{info.factory} (tuning half)")
    for point, rate in zip(info.frontier, rates, strict=True):
        chosen = point.search_parameters == info.search_parameters
        label = " ".join(f"{name}={value:g}" for name, value in point.search_parameters.items())
        axes.annotate(
            label,
            (point.recall, rate),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            fontweight="bold" if chosen else "normal",
        )
        if chosen:
            axes.plot([point.recall], [rate], marker="o", markersize=13, fillstyle="none", color="C3")
    if info.recall_target is not None:
        axes.axvline(info.recall_target, linestyle="--", color="grey", label="target")
    axes.set_yscale("log")
    axes.set_xlabel(f"recall of the {info.num_candidates} merged candidates")
    axes.set_ylabel("requests per second, one thread")
    axes.set_title(f"{info.kind}: chosen for {info.recall:.4f} on {info.num_queries} held-out requests")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=110)
