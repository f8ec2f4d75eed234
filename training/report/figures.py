"""The numbers of the page about a run.

Legend: U users, B users of a block, K interests, L history length, M candidates, N items.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.training.data.dataset import Dataset, Sequences
from re4.training.evaluation.baselines import rank_baseline
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import (
    Evaluation,
    history_and_targets,
    rank,
    recall_50_U,
    summarise,
)
from re4.training.evaluation.simple_models import fits_for
from re4.training.model.model import MultiInterestModel
from re4.training.run.run import Run

_NUM_EXAMPLES = 6
_NUM_SHOWN = 8
_NUM_TENTHS = 10
_CHUNK_USERS = 256
FEW_EVENTS = 5
_LENGTH_EDGES = (5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A group of held-out targets, and the share of them that was found."""

    name: str
    num_targets: int
    recall_50: float
    """Share of the group's targets, over all users, within the first 50."""


@dataclass(frozen=True, kw_only=True)
class SimpleModelRow:
    """A simple model on the same users and by the same protocol."""

    name: str
    evaluation: Evaluation
    lead: Interval
    """Its Recall@50 minus that of the run, paired by user."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One user: the attention of each interest, and its candidates."""

    user: str
    """The user's id."""
    history: list[str]
    """Newest first."""
    attention_KL: list[list[float]]
    candidates: list[tuple[str, int, bool]]
    """Label, number of the interest, and whether the item is a target; best first."""


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """All numbers of the page."""

    records: list[dict[str, Any]]
    """A record of each epoch, as in `metrics.jsonl`."""
    best_epoch: int
    exclude_history: bool
    """Whether the items of a user's history are left out of the list."""
    num_users: int
    recall_50: Interval
    start: str
    """The kept epoch's gain over the start in validation, in words; empty where nothing was trained."""
    evaluation: Evaluation
    """The metrics of the same lists, with those about several interests."""
    models: list[SimpleModelRow]
    models_left_out: str
    """Why simple models are missing; empty where none is."""
    share_of_list_K: list[float]
    """For each interest, its share of all candidates in the users' first 50."""
    share_of_hits_K: list[float]
    """For each interest, its share of the candidates that were hits."""
    recall_by_interests_K: list[float]
    """Recall@50 with only the k interests of a user that found the most candidates, k = 1 … K."""
    tenths_of_events: list[float]
    """Share of the training events in each tenth of the catalogue, most popular first."""
    tenths_of_candidates: list[float]
    """Share of all candidates in each tenth."""
    by_popularity: list[Share]
    by_history_length: list[Share]
    examples: list[Example]


def gather_figures(
    run: Run,
    dataset: Dataset,
    held_out: Sequences,
    user_ids: Sequence[object],
    *,
    exclude_history: bool = False,
) -> ReportFigures:
    """Compute the numbers for held-out users.

    Args:
        run: The run.
        dataset: Its data set.
        held_out: The users.
        user_ids: Their ids.
        exclude_history: Whether the items of a user's history are left out of the list.
    """
    model = run.load_model()
    ranking = rank(model, held_out, exclude_history=exclude_history, title="ranking")
    top_UM = ranking.top_UM
    interests_UKD, attention_UKL = _encoded(model, held_out)
    found_by_UM = _best_interests(model, interests_UKD, top_UM)
    targets_U = [np.unique(history_and_targets(held_out, user)[1]) for user in range(held_out.num_users)]
    is_hit_UM = np.stack([np.isin(top_M, targets) for top_M, targets in zip(top_UM, targets_U, strict=True)])
    recall_U = is_hit_UM.sum(axis=1) / [len(targets) for targets in targets_U]
    models, models_left_out = _simple_models(dataset, held_out, recall_U, exclude_history=exclude_history)
    counts_N = dataset.item_counts()
    num_interests = model.config.K
    return ReportFigures(
        exclude_history=exclude_history,
        records=run.metrics(),
        best_epoch=run.best_epoch,
        num_users=held_out.num_users,
        recall_50=Interval.of(recall_U),
        start=_start(run),
        evaluation=summarise(ranking, held_out, dataset.num_items),
        models=models,
        models_left_out=models_left_out,
        share_of_list_K=_shares(found_by_UM.ravel(), num_interests),
        share_of_hits_K=_shares(found_by_UM[is_hit_UM], num_interests),
        recall_by_interests_K=_recall_by_interests(
            model, interests_UKD, held_out, targets_U, found_by_UM, exclude_history=exclude_history
        ),
        tenths_of_events=_by_tenths(np.arange(len(counts_N)), counts_N, counts_N),
        tenths_of_candidates=_by_tenths(top_UM.ravel(), np.ones(top_UM.size), counts_N),
        by_popularity=_recall_by_popularity(top_UM, targets_U, counts_N),
        by_history_length=_recall_by_length(top_UM, targets_U, held_out),
        examples=_examples(run, held_out, user_ids, top_UM, found_by_UM, is_hit_UM, attention_UKL),
    )


def _simple_models(
    dataset: Dataset, held_out: Sequences, recall_U: NDArray[np.float64], *, exclude_history: bool
) -> tuple[list[SimpleModelRow], str]:
    """Return the simple models that a catalogue of this size allows, and why others are missing."""
    fits, left_out = fits_for(dataset.num_items)
    rows = []
    for name, fit in fits.items():
        ranking = rank_baseline(
            fit(dataset.train), held_out, dataset.num_items, exclude_history=exclude_history
        )
        rows.append(
            SimpleModelRow(
                name=name,
                evaluation=summarise(ranking, held_out, dataset.num_items),
                lead=Interval.of(recall_50_U(ranking, held_out) - recall_U),
            )
        )
    return rows, left_out


def _start(run: Run) -> str:
    best = next(record for record in run.metrics() if record["epoch"] == run.best_epoch)
    if best.get("over_start") is None or len(run.metrics()) == 1:
        return ""
    if run.best_epoch == 0:
        return "Training did not help: no epoch found more than the start, epoch 0."
    lead = Interval(**best["over_start"])
    if not lead.is_above_zero:
        return f"In validation Recall@50 it is level with the start, epoch 0: the difference is {lead}."
    return f"In validation Recall@50 it is ahead of the start, epoch 0, by {lead}."


def _encoded(model: MultiInterestModel, held_out: Sequences) -> tuple[Tensor, NDArray[np.float32]]:
    """Encode the users, a block at a time; return interests [U, K, D] and attention [U, K, L]."""
    rows_UL, lengths_U = held_out.histories(model.config.L)
    interests, attention = [], []
    for start in range(0, held_out.num_users, _CHUNK_USERS):
        users = slice(start, start + _CHUNK_USERS)
        with torch.inference_mode():
            encoded = model.interests(torch.from_numpy(rows_UL[users]), torch.from_numpy(lengths_U[users]))
        interests.append(encoded.interests_BKD)
        attention.append(encoded.attention_BKL)
    return torch.cat(interests), torch.cat(attention).numpy()


def _best_interests(
    model: MultiInterestModel, interests_UKD: Tensor, top_UM: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the number of the interest that scores each candidate best."""
    vectors_ND = model.item_vectors_ND()
    found_by_UM = np.empty(top_UM.shape, np.int64)
    for start in range(0, len(top_UM), _CHUNK_USERS):
        users = slice(start, start + _CHUNK_USERS)
        candidates_BMD = vectors_ND[torch.from_numpy(top_UM[users])]
        scores_BKM = interests_UKD[users] @ candidates_BMD.transpose(1, 2)
        found_by_UM[users] = scores_BKM.argmax(dim=1).numpy()
    return found_by_UM


def _shares(numbers: NDArray[np.int64], num_interests: int) -> list[float]:
    counts_K = np.bincount(numbers, minlength=num_interests)
    shares: list[float] = (counts_K / max(1, counts_K.sum())).tolist()
    return shares


def _recall_by_interests(
    model: MultiInterestModel,
    interests_UKD: Tensor,
    held_out: Sequences,
    targets_U: list[NDArray[np.int64]],
    found_by_UM: NDArray[np.int64],
    *,
    exclude_history: bool,
) -> list[float]:
    """Return the recall with each user's k most used interests alone, k = 1 … K."""
    num_interests, depth = model.config.K, found_by_UM.shape[1]
    vectors_ND = model.item_vectors_ND()
    used_UK = np.stack([np.bincount(found_by_M, minlength=num_interests) for found_by_M in found_by_UM])
    order_UK = torch.from_numpy(np.argsort(-used_UK, axis=1, kind="stable"))
    recall_K = np.zeros(num_interests)
    for user, interests_KD in enumerate(interests_UKD):
        scores_KN = interests_KD[order_UK[user]] @ vectors_ND.T
        if exclude_history:
            history, _ = history_and_targets(held_out, user)
            scores_KN[:, history] = -torch.inf
        top_KM = scores_KN.cummax(dim=0).values.topk(depth, dim=1).indices.numpy()
        recall_K += [np.isin(targets_U[user], top_M).mean() for top_M in top_KM]
    found: list[float] = (recall_K / held_out.num_users).tolist()
    return found


def _by_tenths(rows: NDArray[np.int64], weights: NDArray[Any], counts_N: NDArray[np.int64]) -> list[float]:
    """Return the share of the weight in each tenth of the catalogue, by popularity."""
    place_N = np.empty(len(counts_N), np.int64)
    place_N[np.argsort(-counts_N, kind="stable")] = np.arange(len(counts_N))
    sums = np.bincount(place_N[rows] * _NUM_TENTHS // len(counts_N), weights, _NUM_TENTHS)
    shares: list[float] = (sums / max(1.0, sums.sum())).tolist()
    return shares


def _recall_by_popularity(
    top_UM: NDArray[np.int64], targets_U: list[NDArray[np.int64]], counts_N: NDArray[np.int64]
) -> list[Share]:
    """Return the recall of head, middle and tail (a third of the training events each) and of cold items."""
    ranked = np.sort(counts_N)[::-1]
    through = np.cumsum(ranked) / max(1, counts_N.sum())
    head, middle = (int(ranked[np.searchsorted(through, edge)]) for edge in (1 / 3, 2 / 3))
    groups = {
        f"head: {head:,} events and more": counts_N >= head,
        f"middle: {middle:,} to {head:,}": (counts_N >= middle) & (counts_N < head),
        f"tail: fewer than {middle:,}": counts_N < middle,
        f"cold: fewer than {FEW_EVENTS}": counts_N < FEW_EVENTS,
    }
    return [_share_of(name, top_UM, targets_U, is_in_N) for name, is_in_N in groups.items()]


def _share_of(
    name: str, top_UM: NDArray[np.int64], targets_U: list[NDArray[np.int64]], is_in_N: NDArray[np.bool_]
) -> Share:
    found = num_targets = 0
    for top_M, targets in zip(top_UM, targets_U, strict=True):
        of_group = targets[is_in_N[targets]]
        num_targets += len(of_group)
        found += int(np.isin(of_group, top_M).sum())
    return Share(name=name, num_targets=num_targets, recall_50=found / max(1, num_targets))


def _recall_by_length(
    top_UM: NDArray[np.int64], targets_U: list[NDArray[np.int64]], held_out: Sequences
) -> list[Share]:
    lengths_U = np.asarray(held_out.num_history_U)
    shares = []
    for low, high in itertools.pairwise((0, *_LENGTH_EDGES, int(max(lengths_U.max(), _LENGTH_EDGES[-1])))):
        users = np.flatnonzero((lengths_U > low) & (lengths_U <= high))
        found = sum(int(np.isin(targets_U[user], top_UM[user]).sum()) for user in users)
        num_targets = sum(len(targets_U[user]) for user in users)
        name = f"{low + 1} to {high} events"
        shares.append(Share(name=name, num_targets=num_targets, recall_50=found / max(1, num_targets)))
    return [share for share in shares if share.num_targets]


def _examples(
    run: Run,
    held_out: Sequences,
    user_ids: Sequence[object],
    top_UM: NDArray[np.int64],
    found_by_UM: NDArray[np.int64],
    is_hit_UM: NDArray[np.bool_],
    attention_UKL: NDArray[np.float32],
) -> list[Example]:
    """Return examples of users, spread evenly over the split."""
    items = run.items()
    labels = [str(id_) for id_ in items["item_id"]]
    if "title" in items.columns:
        labels = [str(title or label) for title, label in zip(items["title"], labels, strict=True)]
    rows_UL, lengths_U = held_out.histories(run.config.L)
    chosen = np.unique(np.linspace(0, held_out.num_users - 1, _NUM_EXAMPLES).round().astype(int))
    return [
        Example(
            user=str(user_ids[int(user)]),
            history=[labels[row] for row in rows_UL[user, : lengths_U[user]]],
            attention_KL=attention_UKL[user, :, : lengths_U[user]].tolist(),
            candidates=[
                (labels[row], int(number), bool(hit))
                for row, number, hit in zip(
                    top_UM[user, :_NUM_SHOWN], found_by_UM[user], is_hit_UM[user], strict=False
                )
            ],
        )
        for user in chosen
    ]
