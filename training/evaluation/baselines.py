"""The baselines that a multi-interest model must beat: most popular, item-item cosine, EASE.

Each is fitted to the training users' sequences and scores the whole catalogue for a history. All of
a history counts, each item once. Sources: cosine of co-occurrence as in Sarwar et al., WWW 2001;
EASE: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from re4.training.data.dataset import Sequences
from re4.training.evaluation.protocol import CUTS, Ranking, history_and_targets, summarise

MAX_EASE_ITEMS = 20_000
"""Beyond this size a matrix of items by items is too large for an ordinary machine."""
EASE_PENALTIES = (50.0, 200.0, 800.0)
CHUNK_USERS = 256
Baseline: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Scores of the catalogue, float32 [B, N], for histories that are 1 at the chosen items."""


def most_popular(train: Sequences, num_items: int) -> Baseline:
    """Return the same scores for all: the number of training users of each item."""
    counts_N = torch.sparse.sum(_user_items(train, num_items), dim=0).to_dense()
    return lambda chosen_BN: counts_N.expand_as(chosen_BN)


def item_cosine(train: Sequences, num_items: int) -> Baseline:
    """Return summed cosines between two items' sets of users; an item has no weight for itself."""
    weights_NN = cosine_weights(train, num_items)
    return lambda chosen_BN: torch.sparse.mm(chosen_BN.to_sparse(), weights_NN)


def cosine_weights(train: Sequences, num_items: int) -> torch.Tensor:
    """Return the cosines between two items' sets of users, [N, N], 0 between an item and itself."""
    together_NN = _gram(_user_items(train, num_items))
    length_N = together_NN.diagonal().clamp_min(1).sqrt()
    return (together_NN / length_N[:, None] / length_N[None, :]).fill_diagonal_(0)


def ease(train: Sequences, num_items: int, *, penalty: float) -> Baseline:
    """Return the closed-form linear autoencoder: `B = I - P / diag(P)` with `P = (XᵀX + λI)⁻¹`."""
    inverse_NN = inverse_gram(train, num_items, penalty=penalty)
    weights_NN = inverse_NN.div_(-inverse_NN.diagonal()[None, :].clone()).fill_diagonal_(0)
    return lambda chosen_BN: torch.sparse.mm(chosen_BN.to_sparse(), weights_NN)


def inverse_gram(train: Sequences, num_items: int, *, penalty: float) -> torch.Tensor:
    """Return EASE's `P = (XᵀX + λI)⁻¹`, [N, N]."""
    gram_NN = _gram(_user_items(train, num_items))
    gram_NN.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram_NN))


def fit_baselines(
    train: Sequences, valid: Sequences, num_items: int
) -> Mapping[str, tuple[Baseline, dict[str, Any]]]:
    """Fit all baselines; return each with its settings.

    EASE's penalty is the one with the best validation Recall@50. A catalogue that is too large has no EASE.
    """
    fitted: dict[str, tuple[Baseline, dict[str, Any]]] = {
        "most popular": (most_popular(train, num_items), {}),
        "item-item cosine": (item_cosine(train, num_items), {}),
    }
    if num_items <= MAX_EASE_ITEMS:
        best_recall = -1.0
        for penalty in EASE_PENALTIES:
            baseline = ease(train, num_items, penalty=penalty)
            ranking = rank_baseline(baseline, valid, num_items, exclude_history=False)
            recall = summarise(ranking, valid, num_items).recall_50
            if recall > best_recall:
                best_recall = recall
                fitted["EASE"] = baseline, {"penalty": penalty}
    return fitted


def rank_baseline(
    baseline: Baseline,
    held_out: Sequences,
    num_items: int,
    *,
    exclude_history: bool,
    newest: int | None = None,
    recency_decay: float = 1.0,
) -> Ranking:
    """Rank the whole catalogue for every held-out user.

    Args:
        baseline: The fitted model.
        held_out: The users.
        num_items: N.
        exclude_history: Whether the items of a history leave the lists.
        newest: How many of a history's newest events count; None for all.
        recency_decay: Weight of an event, relative to the next newer one.
    """
    depth = min(max(CUTS), num_items)
    top_UM: NDArray[np.int64] = np.empty((held_out.num_users, depth), dtype=np.int64)
    for start in range(0, held_out.num_users, CHUNK_USERS):
        users = range(start, min(start + CHUNK_USERS, held_out.num_users))
        chosen_BN, history_BN = torch.zeros(2, len(users), num_items)
        for place, user in enumerate(users):
            history = torch.from_numpy(history_and_targets(held_out, user)[0])
            history_BN[place, history] = 1
            counted = history if newest is None else history[-newest:]
            weights = recency_decay ** torch.arange(len(counted) - 1, -1, -1, dtype=torch.float32)
            chosen_BN[place] = torch.zeros(num_items).scatter_reduce_(0, counted, weights, "amax")
        scores_BN = baseline(chosen_BN)
        if exclude_history:
            scores_BN = scores_BN.masked_fill(history_BN > 0, -torch.inf)
        top_UM[start : users.stop] = scores_BN.topk(depth, dim=1).indices.numpy()
    return Ranking(top_UM=top_UM, interest_cosine=1.0)


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """Return the number of users who chose both of two items, dense [N, N]."""
    with warnings.catch_warnings():
        # PyTorch still calls the product's layout beta; its values are tested here.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        together_NN: torch.Tensor = torch.sparse.mm(matrix.t(), matrix).to_dense()
    return together_NN


def _user_items(train: Sequences, num_items: int) -> torch.Tensor:
    """Return the training matrix, sparse [U, N]: 1 where a user chose an item at least once."""
    users_E = np.repeat(np.arange(train.num_users), np.diff(train.offsets_U1))
    pairs = np.unique(users_E * num_items + train.items_E)
    places = torch.from_numpy(np.stack([pairs // num_items, pairs % num_items]))
    return torch.sparse_coo_tensor(
        places, torch.ones(len(pairs)), (train.num_users, num_items), check_invariants=True
    ).coalesce()
