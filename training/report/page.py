"""The page of a report: HTML beside its pictures, which matplotlib draws.

The page loads nothing from the network and escapes every text.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from re4.common.files import replacing
from re4.training.report import sentences
from re4.training.report.figures import ReportFigures, Share

PAGE: Final = "index.html"
_TEMPLATE: Final = "page.html.j2"
_DPI: Final = 110


def write_page(
    folder: Path,
    figures: ReportFigures,
    *,
    title: str,
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write the pictures, then the page that shows them; return the page's path.

    Args:
        folder: The page's folder; made where it does not exist.
        figures: The numbers.
        title: Of the page.
        config: The run's settings.
        data: The description of the data set (`dataset.json`); None to leave it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        with replacing(folder / name) as part:
            draw(figures).savefig(part, format="png", dpi=_DPI)
    templates = Environment(
        loader=PackageLoader("re4.training.report", ""), autoescape=True, undefined=StrictUndefined
    )
    text = templates.get_template(_TEMPLATE).render(
        title=title,
        figures=figures,
        config=config,
        data=None if data is None else sentences.about_data(data),
        prepared={} if data is None else data["prepared"],
        verdict=sentences.verdict(figures),
        shown={name: describe(figures) for name, describe in _SENTENCES.items()},
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with replacing(folder / PAGE) as part:
        part.write_text(text, encoding="utf-8")
    return folder / PAGE


_SENTENCES: Final[Mapping[str, Callable[[ReportFigures], list[str]]]] = {
    "metrics": sentences.about_validation,
    "losses": sentences.about_losses,
    "interests": sentences.about_interests,
    "popularity": sentences.about_popularity,
}
"""What each picture shows, in words."""


def _losses(figures: ReportFigures) -> Figure:
    records = [record for record in figures.records if record["losses"]]
    names = list(records[0]["losses"]) if records else []
    figure = Figure(figsize=(3.2 * max(1, len(names)), 2.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(1, len(names))))
    for axis, name in zip(axes, names, strict=False):
        axis.plot([record["epoch"] for record in records], [record["losses"][name] for record in records])
        _mark_best(axis, figures)
        axis.set(title=name, xlabel="epoch")
    return figure


def _metrics(figures: ReportFigures) -> Figure:
    figure = Figure(figsize=(13, 3), layout="constrained")
    groups = {
        "Recall": ("recall_20", "recall_50"),
        "HitRate": ("hit_rate_20", "hit_rate_50"),
        "NDCG": ("ndcg_20", "ndcg_50"),
        "Cosine between interests": ("interest_cosine",),
    }
    epochs = [record["epoch"] for record in figures.records]
    for axis, (title, names) in zip(figure.subplots(1, len(groups)), groups.items(), strict=True):
        for name in names:
            values = [record["valid"][name] for record in figures.records]
            # Runs of earlier versions have no interval.
            widths = [record.get("recall_50_half_width") or 0.0 for record in figures.records]
            bars = widths if name == "recall_50" else None
            label = f"{title} at {name[-2:]}" if name[-1].isdigit() else title
            axis.errorbar(epochs, values, bars, marker=".", capsize=2, label=label)
        _mark_best(axis, figures)
        axis.set(title=title, xlabel="epoch")
        axis.legend()
    return figure


def _interests(figures: ReportFigures) -> Figure:
    figure = Figure(figsize=(10, 3), layout="constrained")
    used, recall = figure.subplots(1, 2)
    numbers = np.arange(len(figures.share_of_list_K))
    used.bar(numbers - 0.2, figures.share_of_list_K, 0.4, label="of all candidates")
    used.bar(numbers + 0.2, figures.share_of_hits_K, 0.4, label="of all hits")
    used.set(title="Share of each interest", xlabel="interest", ylabel="share", xticks=numbers)
    used.legend()
    recall.plot(numbers + 1, figures.recall_by_interests_K, marker="o")
    recall.set(title="Recall@50 with a user's k most used interests", xlabel="k", xticks=numbers + 1)
    recall.set_ylim(0, 1.1 * max(figures.recall_by_interests_K) or 1.0)
    return figure


def _popularity(figures: ReportFigures) -> Figure:
    figure = Figure(figsize=(15, 3), layout="constrained")
    bias, popularity, length = figure.subplots(1, 3)
    tenths = np.arange(1, len(figures.tenths_of_events) + 1)
    bias.bar(tenths - 0.2, figures.tenths_of_events, 0.4, label="of what users chose")
    bias.bar(tenths + 0.2, figures.tenths_of_candidates, 0.4, label="of candidates")
    bias.set(title="Popularity bias", xlabel="tenth of the catalogue, most popular first", ylabel="share")
    bias.legend()
    _draw_shares(popularity, "Recall@50 by the item's events in training", figures.by_popularity)
    _draw_shares(length, "Recall@50 by the user's history", figures.by_history_length)
    return figure


PICTURES: Mapping[str, Callable[[ReportFigures], Figure]] = {
    "losses.png": _losses,
    "metrics.png": _metrics,
    "interests.png": _interests,
    "popularity.png": _popularity,
}


def _mark_best(axis: Axes, figures: ReportFigures) -> None:
    axis.axvline(figures.best_epoch, color="grey", linestyle=":", linewidth=1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_shares(axis: Axes, title: str, shares: list[Share]) -> None:
    labels = [f"{share.name}\n{share.num_targets:,} targets" for share in shares]
    axis.barh(labels, [share.recall_50 for share in shares])
    axis.invert_yaxis()
    axis.set(title=title)
