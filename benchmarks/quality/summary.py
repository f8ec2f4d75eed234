"""Summary of a ledger's entries: means, intervals, and differences paired by user.

Intervals are 95 %: over seeds for a mean, over users for a difference (each user's metric is averaged over
the seeds first).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.common.confidence import half_width
from re4.benchmarks.common.report import join_parts, page_table
from re4.benchmarks.quality.ledger import PROTOCOLS, Entry, Ledger, TestResult
from re4.common.console import print_line, table

METRICS: Final = {
    "recall_20": "Recall@20",
    "recall_50": "Recall@50",
    "hit_rate_20": "HitRate@20",
    "hit_rate_50": "HitRate@50",
    "ndcg_20": "NDCG@20",
    "ndcg_50": "NDCG@50",
}
"""Names in reports, and headings of tables."""
_COMPARED: Final = ("recall_20", "recall_50", "ndcg_20", "ndcg_50")
"""Metrics of the terminal's table and of a page's first one: hit rate adds little to recall."""
_INTEREST_COLUMNS: Final = {
    "effective_interests": "effective",
    "interest_overlap": "overlap",
    "one_interest_recall": "one alone",
}
"""Figures about several interests, and headings: the effective number of interests, the overlap of own lists,
and Recall@50 of the most used interest alone over that of all."""
_IN_WORDS: Final = ("history left in", "history left out")
"""The protocols."""


def summarise_entries(ledger: Ledger, entries: Sequence[Entry], reference: str) -> list[dict[str, Any]]:
    """Return figures by variant, over all of its seeds, and protocol, the best variant on validation first.

    They are compared with the reference variant; if that is unknown, with the best on validation.
    """
    ordered = _by_variant(entries)
    compared_with = next((place for place, group in enumerate(ordered) if group[0].variant == reference), 0)
    outcomes = []
    for protocol in PROTOCOLS:
        by_user = [_by_user(ledger, group, protocol) for group in ordered]
        theirs = by_user[compared_with]
        outcomes += [
            {**_outcome(group, protocol, ours, theirs), "is_reference": ours is theirs}
            for group, ours in zip(ordered, by_user, strict=True)
        ]
    return outcomes


def verdict(ledger: Ledger, entries: Sequence[Entry]) -> str:
    """Return the outcome in words: the best model by validation, its lead, how sure it is, and its cost."""
    ordered = _by_variant(entries)
    best = ordered[0]
    means = " / ".join(
        f"{np.mean([entry.test[protocol].metrics['recall_50'] for entry in best]):.4f}"
        for protocol in PROTOCOLS
    )
    found = [
        f"By validation `{best[0].variant}` is best: test Recall@50 {means}, history left in / left out."
    ]
    if len(ordered) == 1:
        return found[0]
    other = ordered[1]
    leads, is_sure = [], []
    for protocol in PROTOCOLS:
        ours_U, theirs_U = (_by_user(ledger, group, protocol)["recall_50"] for group in (best, other))
        scale = 100 / max(float(theirs_U.mean()), 1e-12)
        mean, half = float((ours_U - theirs_U).mean()), half_width((ours_U - theirs_U).tolist()) or 0.0
        leads.append(f"{scale * mean:+.1f} % ({scale * (mean - half):+.1f} to {scale * (mean + half):+.1f})")
        is_sure.append(mean > half)
    seeds = " and ".join(str(len(group)) for group in (best, other) if group[0].seed is not None)
    found.append(
        f"Its difference to the next, `{other[0].variant}`, is {' / '.join(leads)}, with 95 % intervals over "
        f"{len(ledger.num_targets_U):,} users (seeds: {seeds or 'none'}): {_certainty(is_sure)}."
    )
    found.append(_cost(best, other))
    if not any(is_sure) and _num_searches(other) < _num_searches(best):
        found.append(f"`{other[0].variant}` finds as much for fewer searches.")
    return " ".join(found)


def _certainty(is_sure: Sequence[bool]) -> str:
    if all(is_sure):
        return "it is ahead beyond the interval in both"
    if not any(is_sure):
        return "the two cannot be told apart on these users"
    return f"it is ahead beyond the interval with the {_IN_WORDS[list(is_sure).index(True)]} only"


def _num_searches(group: Sequence[Entry]) -> int:
    return int(group[0].settings.get("num_interests", 0))


def _cost(best: Sequence[Entry], other: Sequence[Entry]) -> str:
    """Compare the searches of a request and the training times."""
    parts = []
    for group in (best, other):
        seconds = [entry.train_seconds for entry in group if entry.train_seconds is not None]
        if not _num_searches(group):
            parts.append("none: it is a baseline, which is not served")
        else:
            searches = _num_searches(group)
            parts.append(
                f"{searches} search{'es' if searches > 1 else ''} a request and {np.mean(seconds):,.0f} s of "
                "training"
            )
    return f"Cost: {parts[0]}; of the next: {parts[1]}."


def _by_variant(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries by variant, the best on validation first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.variant, []).append(entry)
    return sorted(groups.values(), key=_validation, reverse=True)


def _validation(group: Sequence[Entry]) -> float:
    return float(np.mean([entry.valid["recall_50"] for entry in group]))


def _by_user(ledger: Ledger, group: Sequence[Entry], protocol: str) -> dict[str, NDArray[np.float64]]:
    by_run = [ledger.by_user(entry.test[protocol]) for entry in group]
    values = {}
    for metric in METRICS:
        kind, _, cut = metric.rpartition("_")
        values[metric] = np.mean([getattr(by_cut[int(cut)], f"{kind}_U") for by_cut in by_run], axis=0)
    return values


def _outcome(
    group: Sequence[Entry],
    protocol: str,
    ours: dict[str, NDArray[np.float64]],
    theirs: dict[str, NDArray[np.float64]],
) -> dict[str, Any]:
    results = [entry.test[protocol] for entry in group]
    differences = {metric: ours[metric] - theirs[metric] for metric in METRICS}
    return {
        "name": group[0].variant,
        "is_history_excluded": protocol == "excluded",
        "num_seeds": len(group),
        "valid_recall_50": _validation(group),
        "metrics": {
            metric: {
                "mean": float(ours[metric].mean()),
                "half_width_over_seeds": half_width([result.metrics[metric] for result in results]),
                "difference": float(difference_U.mean()),
                "difference_half_width": half_width(difference_U.tolist()),
            }
            for metric, difference_U in differences.items()
        },
        "coverage_50": float(np.mean([result.coverage_50 for result in results])),
        "interest_cosine": float(np.mean([result.interest_cosine for result in results])),
        **{name: _mean_of_interests(results, name) for name in _INTEREST_COLUMNS},
        "num_epochs": None if group[0].num_epochs is None else float(np.mean([e.num_epochs for e in group])),
    }


def _mean_of_interests(results: Sequence[TestResult], name: str) -> float | None:
    """Return the mean of a figure about several interests; None where no entry has it."""
    values = [result.interests[name] for result in results if result.interests is not None]
    return float(np.mean(values)) if values else None


def print_summary(title: str, outcomes: Sequence[dict[str, Any]], verdict: str) -> None:
    """Print both protocols on the terminal, and the outcome in words."""
    for words, of_protocol in zip(_IN_WORDS, _by_protocol(outcomes), strict=True):
        rows = [_cells(each, _COMPARED) for each in of_protocol]
        table(f"{title} · test · {words}", _columns(_COMPARED), rows)
    print_line(verdict)


def render_markdown(title: str, outcomes: Sequence[dict[str, Any]], verdict: str) -> str:
    """Return the page of a ledger."""
    reference = next(each["name"] for each in outcomes if each["is_reference"])
    parts = [
        f"# Quality on {title}",
        "Written from the ledger beside it by `re4 bench quality` (`docs/benchmarks.md`). Test users; ± is "
        "half of the 95 % interval: over seeds, and for differences over users, paired. Differences are from "
        f"`{reference}`. In order of validation Recall@50.",
        verdict,
        f"## `{reference}` over the others",
        "In per cent, history left in / left out; bold is beyond the interval of the difference.",
        page_table(["", "seeds", *(METRICS[metric] for metric in _COMPARED)], _gains(outcomes)),
    ]
    for words, of_protocol in zip(_IN_WORDS, _by_protocol(outcomes), strict=True):
        rows = [_cells(each, METRICS) for each in of_protocol]
        parts += [f"## {words.capitalize()}", page_table(_columns(METRICS), rows)]
    return join_parts(parts)


def _by_protocol(outcomes: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the variants with the history left in; then the same, in the same order, with it left out."""
    return [
        [each for each in outcomes if each["is_history_excluded"] == excluded] for excluded in (False, True)
    ]


def _gains(outcomes: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each variant but the reference: the gain of the reference over it."""
    rows = []
    for both in zip(*_by_protocol(outcomes), strict=True):
        if not both[0]["is_reference"]:
            gains = (" / ".join(_gain(each["metrics"][metric]) for each in both) for metric in _COMPARED)
            rows.append([both[0]["name"], str(both[0]["num_seeds"]), *gains])
    return rows


def _gain(figures: dict[str, float]) -> str:
    if not figures["mean"]:
        return "–"
    gain = -100 * figures["difference"] / figures["mean"]
    text = f"{round(gain, 1) + 0.0:+.1f}"  # no minus before 0
    return f"**{text}**" if abs(figures["difference"]) > figures["difference_half_width"] else text


def _columns(metrics: Iterable[str]) -> list[str]:
    headings = (METRICS[metric] for metric in metrics)
    return [
        "",
        "seeds",
        "valid R@50",
        *headings,
        "Δ Recall@50",
        "Δ NDCG@20",
        "coverage",
        "cosine",
        *_INTEREST_COLUMNS.values(),
    ]


def _cells(outcome: dict[str, Any], shown: Iterable[str]) -> list[str]:
    cells = [outcome["name"], str(outcome["num_seeds"]), f"{outcome['valid_recall_50']:.4f}"]
    for metric in shown:
        figures = outcome["metrics"][metric]
        width = figures["half_width_over_seeds"]
        cells.append(f"{figures['mean']:.4f}" + ("" if width is None else f" ±{width:.4f}"))
    for metric in ("recall_50", "ndcg_20"):
        figures = outcome["metrics"][metric]
        cells.append(f"{figures['difference']:+.4f} ±{figures['difference_half_width']:.4f}")
    cells += [f"{outcome['coverage_50']:.3f}", f"{outcome['interest_cosine']:.3f}"]
    figures_of_interests = (outcome[name] for name in _INTEREST_COLUMNS)
    return [*cells, *("" if value is None else f"{value:.3f}" for value in figures_of_interests)]
