"""The report of `re4 bench index`: frontiers, a page, and a picture.

Engines are compared at the fastest setting that reaches the recall, and by their frontiers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from re4.benchmarks.common.report import join_parts, page_table

RECALL = 0.95


def best_at(engine: Mapping[str, Any], num_threads: int, recall: float = RECALL) -> Mapping[str, Any] | None:
    """Return the fastest point that reaches a recall; None where there is none."""
    points = (point for point in _points(engine, num_threads) if point["recall"] >= recall)
    return min(points, key=lambda point: point["request_us"], default=None)


def _points(engine: Mapping[str, Any], num_threads: int) -> list[Mapping[str, Any]]:
    return [point for point in engine.get("points", []) if point["threads"] == num_threads]


def pareto(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the points that no other one beats in both recall and time, fastest first."""
    best: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["request_us"], -point["recall"])):
        if not best or point["recall"] > best[-1]["recall"]:
            best.append(point)
    return best


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a report, which is the JSON object."""
    machine = report["machine"]
    times = sorted(engine["measured_at"] for engine in report["engines"] if "measured_at" in engine)
    parts = [
        f"# Index frontier: {report['num_items']:,} items, D = {report['embedding_dim']}, "
        f"K = {report['num_interests']}, {report['num_candidates']} candidates",
        f"{report['source']}; {report['num_requests']} requests in batches of {report['batch_size']}, merged "
        f"recall against exact search. {machine['cpu_model']}, {machine['num_usable_cpus']} CPUs, load "
        f"{machine['load_average_at_start'][0]:.1f} at the start. `{report['command']}`"
        + (f". Measured from {times[0]} to {times[-1]}" if times else ""),
    ]
    fastest = f"fastest at recall ≥ {RECALL}"
    columns = ["engine", fastest, "requests/s", "× flat", "bytes/item", "built in", "most"]
    for num_threads in report["threads"]:
        flat: Mapping[str, Any] = next((one for one in report["engines"] if one["engine"] == "flat"), {})
        base = best_at(flat, num_threads)
        clock = "CPU time" if num_threads == 1 else "elapsed time"
        rows = [_row(engine, num_threads, base) for engine in report["engines"]]
        parts += [
            f"## {num_threads} thread{'s' if num_threads > 1 else ''} ({clock})",
            page_table(columns, rows),
        ]
    return join_parts([*parts, "![frontier](index.png)"])


def _row(engine: Mapping[str, Any], num_threads: int, base: Mapping[str, Any] | None) -> list[str]:
    if "skipped" in engine:
        return [engine["engine"], f"skipped: {engine['skipped']}", *[""] * 5]
    recalls = [point["recall"] for point in _points(engine, num_threads)]
    if not recalls:
        return [engine["engine"], "not measured", *[""] * 5]
    best, figures = best_at(engine, num_threads), ["never", "", ""]
    if best is not None:
        settings = ", ".join(f"{name} {value:g}" for name, value in best["search_parameters"].items())
        figures = [
            f"{settings or 'exact'} (recall {best['recall']:.4f})",
            f"{1e6 / best['request_us']:,.0f}",
            f"{base['request_us'] / best['request_us']:.1f}" if base else "",
        ]
    sizes = [f"{engine['bytes_per_item']:.0f}", f"{engine['build_s']:.0f} s", f"{max(recalls):.4f}"]
    return [f"{engine['engine']} ({engine['how']})", *figures, *sizes]


def pareto_only(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine without the points that others of its own beat."""
    threads = sorted({point["threads"] for point in engine.get("points", [])})
    return {**engine, "points": [point for each in threads for point in pareto(_points(engine, each))]}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * len(report["threads"]), 5.5), layout="constrained")
    for place, num_threads in enumerate(report["threads"]):
        axes = figure.add_subplot(1, len(report["threads"]), place + 1)
        for number, engine in enumerate(report["engines"]):
            if points := pareto(_points(engine, num_threads)):
                axes.plot(
                    [point["recall"] for point in points],
                    [1e6 / point["request_us"] for point in points],
                    marker="os^vD<>P*X"[number % 10],
                    markersize=4,
                    linestyle="--" if engine.get("is_peer") else "-",
                    label=engine["engine"],
                )
        axes.axvline(RECALL, linestyle=":", color="grey")
        axes.set(yscale="log", xlim=(0.7, 1.005), xlabel=f"recall of {report['num_candidates']} candidates")
        axes.set(ylabel="requests per second", title=f"{num_threads} thread(s)")
        axes.grid(which="both", alpha=0.25)
        axes.legend(fontsize="small")
    figure.suptitle(f"{report['num_items']:,} items, D = {report['embedding_dim']}: {report['source']}")
    figure.savefig(path, format="png", dpi=130)
