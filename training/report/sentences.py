"""The findings of a report in sentences: the verdict, and what each picture shows."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from re4.training.report.figures import FEW_EVENTS, ReportFigures, Share

_LOSS_CHANGE: Final = 0.02
"""Relative change from which a loss rises or falls."""
_AS_MUCH: Final = 0.97
"""Share of the recall with all interests from which fewer find as much."""
_FEW_TARGETS: Final = 20
"""Groups with fewer targets get no sentence."""


def verdict(figures: ReportFigures) -> list[str]:
    """Return the sentences on top of the page: recall, simple models, training, interests."""
    history = "left out of" if figures.exclude_history else "left in"
    recall = figures.recall_50
    half = "" if recall.half_width is None else f" ± {recall.half_width:.4f}"
    found = [
        f"Recall@50 of {figures.num_users:,} held-out users is {recall.mean:.4f}{half}, with the history "
        f"{history} "
        "the lists."
    ]
    found += _against_simple_models(figures)
    if figures.start:
        found.append(figures.start)
    found += about_interests(figures)[:-1] or about_interests(figures)
    found += about_validation(figures)
    return found


def about_validation(figures: ReportFigures) -> list[str]:
    """Return what the curves of validation show."""
    records = [record for record in figures.records if record["epoch"] > 0]
    if len(records) < 2:
        return []
    last, best = records[-1]["epoch"], figures.best_epoch
    recalls = {record["epoch"]: record["valid"]["recall_50"] for record in figures.records}
    if best == last:
        return [
            f"Validation Recall@50 is best in the last of {_count(len(records), 'epoch')}: more epochs may "
            "find more."
        ]
    if best not in recalls or best == 0:
        return []
    return [
        f"Validation Recall@50 is best in epoch {best} ({recalls[best]:.4f}) and {recalls[last]:.4f} in "
        "the last, "
        f"epoch {last}."
    ]


def about_losses(figures: ReportFigures) -> list[str]:
    """Return which losses rise, fall, and stay."""
    records = [record["losses"] for record in figures.records if record["losses"]]
    if len(records) < 2:
        return []
    rising, falling, level = list[str](), list[str](), list[str]()
    for name in records[0]:
        first, last = records[0][name], records[-1][name]
        change = (last - first) / max(abs(first), 1e-12)
        text = f"{name} ({first:.3g} to {last:.3g})"
        (rising if change > _LOSS_CHANGE else falling if change < -_LOSS_CHANGE else level).append(text)
    sentences = [
        f"{which}: {', '.join(names)}."
        for which, names in (("Falling", falling), ("Level", level), ("Rising", rising))
        if names
    ]
    if rising:
        sentences.append(
            "A loss that rises while the recall grows yields to the others; its weight may be too small to "
            "matter."
        )
    return sentences


def about_interests(figures: ReportFigures) -> list[str]:
    """Return how many interests are used, and what several of them add."""
    recall_K = figures.recall_by_interests_K
    num_interests = len(recall_K)
    if num_interests < 2:
        return ["The model has one interest."]
    enough = next(k for k, recall in enumerate(recall_K, start=1) if recall >= _AS_MUCH * recall_K[-1])
    found = []
    if enough < num_interests:
        ratio = recall_K[enough - 1] / max(recall_K[-1], 1e-12)
        found.append(
            f"{_interests(enough)} of a user {_verb_of(enough)} as much as {num_interests} ({ratio:.0%} of "
            "the recall)."
        )
    else:
        gain = recall_K[-1] / max(recall_K[0], 1e-12) - 1
        found.append(f"{num_interests} interests find {gain:.0%} more than the most used one alone.")
    if figures.evaluation.collapse:
        found.append(figures.evaluation.collapse)
    most = int(np.argmax(figures.share_of_hits_K))
    found.append(
        f"Interest {most} finds {figures.share_of_hits_K[most]:.0%} of the hits, and "
        f"{figures.share_of_list_K[most]:.0%} of the candidates."
    )
    return found


def about_popularity(figures: ReportFigures) -> list[str]:
    """Return how far candidates lean to popular items, and whose targets are found."""
    chosen, listed = figures.tenths_of_events[0], figures.tenths_of_candidates[0]
    lean = "does not lean"
    if not chosen / 1.1 <= listed <= 1.1 * chosen:
        lean = f"leans to {'popular' if listed > chosen else 'rare'} items"
    found = [
        f"The most popular tenth of the catalogue has {listed:.0%} of the candidates and {chosen:.0%} of "
        "what users "
        f"chose: the model {lean}."
    ]
    head, *_, cold = figures.by_popularity
    tail = figures.by_popularity[2]
    if head.num_targets >= _FEW_TARGETS and tail.num_targets >= _FEW_TARGETS:
        found.append(
            f"Of targets among popular items (the head) {head.recall_50:.0%} are found, of those among "
            "rare ones (the "
            f"tail) {tail.recall_50:.0%}."
        )
    if cold.num_targets:
        number = round(cold.recall_50 * cold.num_targets)
        found.append(
            f"Of {_count(cold.num_targets, 'target')} among items with fewer than {FEW_EVENTS} events, "
            f"{number or 'none'} {'is' if number == 1 else 'are'} found."
        )
    return found + _by_length(figures.by_history_length)


def about_data(info: Mapping[str, Any]) -> list[str]:
    """Return the data set in sentences.

    Args:
        info: The content of `dataset.json`.
    """
    splits, prepared, dropped = info["splits"], info["prepared"], info["dropped"]
    num_events = sum(split["num_events"] for split in splits.values())
    num_users = sum(split["num_users"] for split in splits.values())
    found = [
        f"{info['name']}: {num_events:,} events of {num_users:,} users on {info['num_items']:,} items; "
        + ", ".join(f"{split['num_users']:,} {name} users" for name, split in splits.items())
        + "."
    ]
    if prepared.get("first_event") and prepared.get("last_event"):
        found.append(f"Events are from {prepared['first_event'][:10]} to {prepared['last_event'][:10]}.")
    losses = [f"{number:,} {name.replace('_', ' ')}" for name, number in dropped.items() if number]
    if losses:
        found.append(f"Dropped or noticed in preparation: {', '.join(losses)}.")
    return found


def _against_simple_models(figures: ReportFigures) -> list[str]:
    if not figures.models:
        return []
    best = max(figures.models, key=lambda model: model.evaluation.recall_50)
    assert best.lead is not None
    base = f"The best simple model, {best.name}, has {best.evaluation.recall_50:.4f}"
    if best.lead.is_above_zero:
        return [f"{base}: it is ahead of this run by {best.lead}. Prefer it, or tune this model."]
    if best.lead.is_below_zero:
        return [f"{base}: this run is ahead by {best.lead.negated}, beyond the 95 % interval."]
    return [f"{base}: neither is ahead, within the 95 % interval; this run minus it is {best.lead.negated}."]


def _by_length(shares: Sequence[Share]) -> list[str]:
    enough = [share for share in shares if share.num_targets >= _FEW_TARGETS]
    if len(enough) < 2:
        return []
    best, worst = (pick(enough, key=lambda share: share.recall_50) for pick in (max, min))
    if best.recall_50 == worst.recall_50:
        return []
    return [
        f"By history: most targets are found for users with {best.name} ({best.recall_50:.0%}), fewest for "
        "those with "
        f"{worst.name} ({worst.recall_50:.0%})."
    ]


def _interests(number: int) -> str:
    return "One interest" if number == 1 else f"The {number} most used interests"


def _verb_of(number: int) -> str:
    return "finds" if number == 1 else "find"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
