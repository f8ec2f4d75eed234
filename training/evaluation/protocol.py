"""The evaluation protocol: exact ranking of the whole catalogue for held-out users (ComiRec's).

The history of a held-out user is encoded to interests. The score of an item is its largest inner
product with them. The list is compared with the user's later events. The items of the history stay
in the list, as in ComiRec, or are taken out, as by a server with `exclude_history`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.common.console import progress
from re4.training.data.dataset import Sequences
from re4.training.encoders.encoder import Encoded
from re4.training.evaluation.interests import (
    MAX_USERS,
    InterestFigures,
    InterestLists,
    are_nearly_one,
    collapse_sentence,
    interest_figures,
    one_interest,
)
from re4.training.evaluation.metrics import UserMetrics, rank_metrics
from re4.training.model.model import MultiInterestModel

CUTS = (20, 50)
# The most scores of a block of users, so that memory does not grow with the catalogue.
_SCORES_PER_BLOCK = 32_000_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over the users of one split: counts, values between 0 and 1, and a cosine."""

    num_users: int
    """Users of the split."""
    recall_20: float
    """Recall@20."""
    recall_50: float
    """Recall@50."""
    hit_rate_20: float
    """HitRate@20."""
    hit_rate_50: float
    """HitRate@50."""
    ndcg_20: float
    """NDCG@20."""
    ndcg_50: float
    """NDCG@50."""
    coverage_50: float
    """Share of the catalogue within the first 50 of at least one user."""
    interest_cosine: float
    """Mean cosine between two interests of a user: 1 for equal ones, lower for more distinct ones."""
    interests: InterestFigures | None = None
    """How distinct the interests of some of the users are; None in evaluations of earlier versions."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the metrics from a JSON object, which may lack the figures about interests."""
        interests = values.get("interests")
        return cls(**{**values, "interests": interests and InterestFigures(**interests)})

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as a JSON object; a subclass's other fields are not in it."""
        values = {field.name: getattr(self, field.name) for field in fields(Evaluation)}
        return {**values, "interests": self.interests and asdict(self.interests)}

    @property
    def collapse(self) -> str:
        """A sentence that the interests are nearly one; empty where they are not, or there is one only."""
        figures = self.interests
        if figures is None:
            return ""
        num_interests, overlap = len(figures.hit_shares), figures.interest_overlap
        if not are_nearly_one(num_interests, overlap, figures.one_interest_recall):
            return ""
        return collapse_sentence(num_interests, overlap, figures.one_interest_recall)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The first items of each user of a split."""

    top_UM: NDArray[np.int64]
    """Item rows, best first, as many as the largest cut-off; -1 for none."""
    interest_cosine: float
    """Mean cosine between two interests of a user; 1 for a model with one interest."""
    lists: InterestLists | None = None
    """The lists of some users' interests; None for a model with one interest."""


def evaluate(
    model: MultiInterestModel, held_out: Sequences, *, exclude_history: bool, title: str = "evaluating"
) -> Evaluation:
    """Rank the whole catalogue for every user of a held-out split and compare with the later events."""
    ranking = rank(model, held_out, exclude_history=exclude_history, title=title)
    return summarise(ranking, held_out, len(model.item_vectors_ND()))


def rank(model: MultiInterestModel, held_out: Sequences, *, exclude_history: bool, title: str) -> Ranking:
    """Rank the whole catalogue for every user of a held-out split, exactly."""
    device = model.item_embedding.weight.device
    rows_UL, lengths_U = held_out.histories(model.config.L)
    vectors_ND = model.item_vectors_ND()
    num_items = len(vectors_ND)
    depth = min(max(CUTS), num_items)
    num_interests = model.config.K
    block = max(1, _SCORES_PER_BLOCK // (num_items * num_interests))

    top_UM = np.empty((held_out.num_users, depth), dtype=np.int64)
    collected = _Collector(held_out.num_users, depth, num_interests) if num_interests > 1 else None
    sum_of_cosines, num_pairs = 0.0, 0
    training = model.training
    model.eval()
    with torch.inference_mode(), progress(title, held_out.num_users) as bar:
        for start in range(0, held_out.num_users, block):
            stop = min(start + block, held_out.num_users)
            rows_BL = torch.from_numpy(rows_UL[start:stop]).to(device)
            lengths_B = torch.from_numpy(lengths_U[start:stop]).to(device)
            encoded = model.interests(rows_BL, lengths_B)
            scores_BKN = encoded.interests_BKD @ vectors_ND.T
            if exclude_history:
                for user in range(start, stop):
                    history, _ = history_and_targets(held_out, user)
                    scores_BKN[user - start, :, torch.from_numpy(history).to(device)] = -torch.inf
            top_BM = scores_BKN.amax(dim=1).topk(depth, dim=1).indices
            top_UM[start:stop] = top_BM.cpu().numpy()
            if collected is not None:
                collected.add(start, scores_BKN, top_BM, encoded.active_BK)
            total, count = cosine_sum(encoded)
            sum_of_cosines, num_pairs = sum_of_cosines + total, num_pairs + count
            bar.advance(stop - start)
    model.train(training)
    return Ranking(
        top_UM=top_UM,
        interest_cosine=sum_of_cosines / num_pairs if num_pairs else 1.0,
        lists=None if collected is None else collected.lists,
    )


def empty_lists(num_users: int, depth: int, num_interests: int) -> InterestLists:
    """Return room for the lists of at most `MAX_USERS` users, spread evenly."""
    users_S = np.unique(np.linspace(0, num_users - 1, min(MAX_USERS, num_users)).astype(np.int64))
    shape = (len(users_S), depth)
    return InterestLists(
        users_S=users_S,
        top_SM=np.empty(shape, np.int64),
        found_by_SM=np.empty(shape, np.int64),
        own_SKM=np.empty((len(users_S), num_interests, depth), np.int64),
        active_SK=np.ones((len(users_S), num_interests), np.bool_),
    )


class _Collector:
    """Collects the lists of the interests of some users."""

    def __init__(self, num_users: int, depth: int, num_interests: int) -> None:
        self.lists = empty_lists(num_users, depth, num_interests)

    def add(self, start: int, scores_BKN: Tensor, top_BM: Tensor, active_BK: Tensor | None) -> None:
        """Add the users of a block, whose first one has the number `start`."""
        lists, depth = self.lists, top_BM.shape[1]
        low, high = np.searchsorted(lists.users_S, [start, start + len(top_BM)])
        for place in range(int(low), int(high)):
            user = int(lists.users_S[place]) - start
            scores_KN, top_M = scores_BKN[user], top_BM[user]
            lists.top_SM[place] = top_M.cpu().numpy()
            lists.found_by_SM[place] = scores_KN[:, top_M].argmax(dim=0).cpu().numpy()
            lists.own_SKM[place] = scores_KN.topk(depth, dim=1).indices.cpu().numpy()
            if active_BK is not None:
                lists.active_SK[place] = active_BK[user].cpu().numpy()


def summarise(ranking: Ranking, held_out: Sequences, num_items: int) -> Evaluation:
    """Return the means over the users of a split."""
    by_cut = user_metrics(ranking.top_UM, held_out)
    return Evaluation(
        num_users=held_out.num_users,
        recall_20=float(by_cut[20].recall_U.mean()),
        recall_50=float(by_cut[50].recall_U.mean()),
        hit_rate_20=float(by_cut[20].hit_rate_U.mean()),
        hit_rate_50=float(by_cut[50].hit_rate_U.mean()),
        ndcg_20=float(by_cut[20].ndcg_U.mean()),
        ndcg_50=float(by_cut[50].ndcg_U.mean()),
        coverage_50=len(np.unique(ranking.top_UM[ranking.top_UM >= 0])) / num_items,
        interest_cosine=ranking.interest_cosine,
        interests=_interest_figures(ranking, held_out, num_items),
    )


def _interest_figures(ranking: Ranking, held_out: Sequences, num_items: int) -> InterestFigures:
    lists = ranking.lists
    if lists is None:
        return one_interest(held_out.num_users)
    targets_S = [np.unique(history_and_targets(held_out, int(user))[1]) for user in lists.users_S]
    return interest_figures(lists, targets_S, num_items)


def recall_50_U(ranking: Ranking, held_out: Sequences) -> NDArray[np.float64]:
    """Return the Recall@50 of each user, float64 [U]."""
    return user_metrics(ranking.top_UM, held_out)[50].recall_U


def history_and_targets(held_out: Sequences, user: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a held-out user's whole history and later events, as item rows, oldest first."""
    start, stop = int(held_out.offsets_U1[user]), int(held_out.offsets_U1[user + 1])
    middle = start + int(held_out.num_history_U[user])
    items = held_out.items_E
    return items[start:middle].astype(np.int64), items[middle:stop].astype(np.int64)


def user_metrics(top_UM: NDArray[np.int64], held_out: Sequences) -> dict[int, UserMetrics]:
    """Return the metrics of each user's list, best first and without repeats, at every cut-off."""
    is_target_UM = np.empty(top_UM.shape, dtype=bool)
    num_targets_U = np.empty(len(top_UM), dtype=np.int64)
    for user, top_M in enumerate(top_UM):
        targets = np.unique(history_and_targets(held_out, user)[1])
        is_target_UM[user] = np.isin(top_M, targets)
        num_targets_U[user] = len(targets)
    return {cut: rank_metrics(is_target_UM, num_targets_U, min(cut, top_UM.shape[1])) for cut in CUTS}


def cosine_sum(encoded: Encoded) -> tuple[float, int]:
    """Return the sum of cosines over ordered pairs of the users' interests, and the number of pairs."""
    unit_BKD = torch.nn.functional.normalize(encoded.interests_BKD, dim=2)
    if encoded.active_BK is not None:
        unit_BKD = unit_BKD * encoded.active_BK[:, :, None]
        num_B = encoded.active_BK.sum(dim=1)
        num_pairs = int((num_B * (num_B - 1)).sum())
    else:
        num_users, num_interests = unit_BKD.shape[:2]
        num_pairs = num_users * num_interests * (num_interests - 1)
    cosine_BKK = unit_BKD @ unit_BKD.transpose(1, 2)
    return float(cosine_BKK.sum() - cosine_BKK.diagonal(dim1=1, dim2=2).sum()), num_pairs
