"""The simple models beside a run, on the same validation users: most popular, item-item cosine, EASE.

`re4 train` ends with them, so that a simpler model that is ahead is seen.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from re4.training.data.dataset import Dataset, Sequences
from re4.training.evaluation.baselines import Baseline, ease, item_cosine, most_popular, rank_baseline
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import rank, recall_50_U
from re4.training.evaluation.run_evaluation import unseen_part
from re4.training.run.run import Run

MAX_ITEM_ITEM_ITEMS: Final = 20_000
"""Beyond it, a matrix of items by items takes more than 1.6 GB."""
MAX_EASE_ITEMS: Final = 10_000
"""Beyond it, inverting that matrix takes as long as many trainings."""
EASE_PENALTY: Final = 200.0
_DECAYS: Final = {"EASE": {"EASE": 1.0, "EASE with recency": 0.8}}
"""The forms of a model by the weight of an event, relative to the next newer one; others have one form."""
MAX_USERS: Final = 5_000
_PROTOCOLS: Final = (False, True)
"""Whether the items of the history leave the lists."""


@dataclass(frozen=True, kw_only=True)
class SimpleModel:
    """One simple model beside a run."""

    name: str
    recall_50: float
    """Recall@50 with the history left in the lists."""
    recall_50_history_excluded: float
    lead: Interval
    """Its Recall@50 minus that of the run, paired by user."""
    lead_history_excluded: Interval


@dataclass(frozen=True, kw_only=True)
class SimpleModels:
    """A run and the simple models, on the same validation users."""

    num_users: int
    recall_50: float
    """Of the run, with the history left in the lists."""
    recall_50_history_excluded: float
    models: list[SimpleModel]
    left_out: str
    """Why models are missing; empty where none is."""

    def to_json(self) -> dict[str, Any]:
        """Return all values as a JSON object."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """Return the comparison in words: the figures, left-out models, and any simple model ahead."""
        figures = [("this run", self.recall_50, self.recall_50_history_excluded)]
        figures += [(each.name, each.recall_50, each.recall_50_history_excluded) for each in self.models]
        shown = ", ".join(f"{name} {kept:.4f} / {excluded:.4f}" for name, kept, excluded in figures)
        found = [f"Recall@50 on {self.num_users:,} validation users, history left in / left out: {shown}."]
        if self.left_out:
            found.append(self.left_out)
        level = []
        for each in self.models:
            leads = {"left in": each.lead, "left out": each.lead_history_excluded}
            ahead = [
                f"{lead} with the history {words}" for words, lead in leads.items() if lead.is_above_zero
            ]
            if ahead:
                found.append(
                    f"{each.name}, a simpler model, is ahead of this run by {' and by '.join(ahead)}, beyond "
                    "the 95 % interval: prefer it, or tune this model."
                )
            elif any(lead.mean >= 0 for lead in leads.values()):
                level.append(f"{each.name} ({' / '.join(str(lead) for lead in leads.values())})")
        if level:
            found.append(
                f"This run is not ahead of simpler models, within the 95 % interval: {', '.join(level)}."
            )
        return found


def compare_with_simple_models(run: Run, dataset: Dataset) -> SimpleModels:
    """Rank for validation users by a run and by the simple models, with the history left in and out.

    Users that an earlier run of a warm start was trained on are left out. Of more than `MAX_USERS`,
    evenly spaced ones are taken.
    """
    held_out, _ = unseen_part(run.trained_on()[1:], dataset, "valid", quiet=True)
    if held_out.num_users > MAX_USERS:
        chosen_U = np.zeros(held_out.num_users, np.bool_)
        chosen_U[np.linspace(0, held_out.num_users - 1, MAX_USERS).astype(np.int64)] = True
        held_out = held_out.only(chosen_U)
    model = run.load_model()
    ours = [
        recall_50_U(rank(model, held_out, exclude_history=excluded, title="simple models"), held_out)
        for excluded in _PROTOCOLS
    ]
    models = []
    fits, left_out = fits_for(dataset.num_items)
    for name, fit in fits.items():
        baseline = fit(dataset.train)
        for form, decay in _DECAYS.get(name, {name: 1.0}).items():
            theirs = _recalls(baseline, held_out, dataset.num_items, decay)
            leads = [Interval.of(their_U - our_U) for their_U, our_U in zip(theirs, ours, strict=True)]
            models.append(
                SimpleModel(
                    name=form,
                    recall_50=float(theirs[0].mean()),
                    recall_50_history_excluded=float(theirs[1].mean()),
                    lead=leads[0],
                    lead_history_excluded=leads[1],
                )
            )
    return SimpleModels(
        num_users=held_out.num_users,
        recall_50=float(ours[0].mean()),
        recall_50_history_excluded=float(ours[1].mean()),
        models=models,
        left_out=left_out,
    )


def fits_for(num_items: int) -> tuple[dict[str, Callable[[Sequences], Baseline]], str]:
    """Return the models that a catalogue of this size allows, and why others are missing."""
    fits: dict[str, Callable[[Sequences], Baseline]] = {
        "most popular": lambda train: most_popular(train, num_items)
    }
    if num_items > MAX_ITEM_ITEM_ITEMS:
        return fits, (
            f"item-item and EASE are left out: they need a matrix of {num_items:,} by {num_items:,} items, "
            f"and this comparison has them up to {MAX_ITEM_ITEM_ITEMS:,} and {MAX_EASE_ITEMS:,} items."
        )
    fits["item-item"] = lambda train: item_cosine(train, num_items)
    if num_items > MAX_EASE_ITEMS:
        return fits, (
            f"EASE is left out: with {num_items:,} items it takes minutes, and this comparison has it up to "
            f"{MAX_EASE_ITEMS:,}; `re4 bench quality` has it up to 20,000."
        )
    fits["EASE"] = lambda train: ease(train, num_items, penalty=EASE_PENALTY)
    return fits, ""


def _recalls(
    baseline: Baseline, held_out: Sequences, num_items: int, recency_decay: float
) -> list[np.ndarray]:
    """Return the Recall@50 of each user, by protocol."""
    with torch.inference_mode():
        return [
            recall_50_U(
                rank_baseline(
                    baseline,
                    held_out,
                    num_items,
                    exclude_history=excluded,
                    recency_decay=recency_decay,
                ),
                held_out,
            )
            for excluded in _PROTOCOLS
        ]
