"""The plain methods that a multi-interest model must beat: most popular, item-item cosine, EASE.

Each takes the training users' sequences and gives scores of the whole catalogue for histories. A history
counts whole, however long, each item once. Sources: cosine of co-occurrence as in Sarwar et al., WWW 2001;
EASE: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from re4.training.data.dataset import Sequences
from re4.training.evaluation.protocol import CUTS, Ranking, history_and_targets, summarise

MAX_EASE_ITEMS = 20_000
"""Beyond, the matrix that EASE inverts is too large for an ordinary machine."""
EASE_PENALTIES = (50.0, 200.0, 800.0)
_BLOCK_USERS = 256


class Baseline(Protocol):
    """A fitted method."""

    def scores_BN(self, chosen_BN: torch.Tensor) -> torch.Tensor:
        """Score the catalogue for users whose history is 1 where they chose an item, float32 [B, N]."""
        ...


class MostPopular:
    """Every user gets the items with the most training users."""

    def __init__(self, train: Sequences, num_items: int) -> None:
        self._counts_N = torch.sparse.sum(_user_items(train, num_items), dim=0).to_dense()

    def scores_BN(self, chosen_BN: torch.Tensor) -> torch.Tensor:
        """Give the same scores to all."""
        return self._counts_N.expand_as(chosen_BN)


class _ItemItem:
    """Scores are the history's rows of an item-item matrix, summed."""

    _weights_NN: torch.Tensor

    def scores_BN(self, chosen_BN: torch.Tensor) -> torch.Tensor:
        """Sum the weights of the chosen items."""
        return chosen_BN @ self._weights_NN


class ItemCosine(_ItemItem):
    """Cosine between two items' sets of users; an item has no weight for itself."""

    def __init__(self, train: Sequences, num_items: int) -> None:
        matrix = _user_items(train, num_items)
        together_NN = _gram(matrix)
        length_N = together_NN.diagonal().clamp_min(1).sqrt()
        self._weights_NN = together_NN / length_N[:, None] / length_N[None, :]
        self._weights_NN.fill_diagonal_(0)


class Ease(_ItemItem):
    """The closed-form linear autoencoder: `B = I - P / diag(P)` with `P = (XᵀX + λI)⁻¹`."""

    def __init__(self, train: Sequences, num_items: int, *, penalty: float) -> None:
        matrix = _user_items(train, num_items)
        gram_NN = _gram(matrix)
        gram_NN.diagonal().add_(penalty)
        inverse_NN = torch.cholesky_inverse(torch.linalg.cholesky(gram_NN))
        self._weights_NN = inverse_NN.div_(-inverse_NN.diagonal()[None, :].clone())
        self._weights_NN.fill_diagonal_(0)


def fit_baselines(
    train: Sequences, valid: Sequences, num_items: int
) -> Mapping[str, tuple[Baseline, dict[str, Any]]]:
    """Fit them all, each with the settings chosen for it.

    EASE's penalty is the one with the best validation Recall@50; it is left out where it does not fit.
    """
    fitted: dict[str, tuple[Baseline, dict[str, Any]]] = {
        "most popular": (MostPopular(train, num_items), {}),
        "item-item cosine": (ItemCosine(train, num_items), {}),
    }
    if num_items <= MAX_EASE_ITEMS:
        best_recall = -1.0
        for penalty in EASE_PENALTIES:
            ease = Ease(train, num_items, penalty=penalty)
            ranking = rank_baseline(ease, valid, num_items, exclude_history=False)
            recall = summarise(ranking, valid, num_items).recall_50
            if recall > best_recall:
                best_recall = recall
                fitted["EASE"] = ease, {"penalty": penalty}
    return fitted


def rank_baseline(
    baseline: Baseline, held_out: Sequences, num_items: int, *, exclude_history: bool
) -> Ranking:
    """Rank the whole catalogue for every held-out user."""
    depth = min(max(CUTS), num_items)
    top_UM: NDArray[np.int64] = np.empty((held_out.num_users, depth), dtype=np.int64)
    for start in range(0, held_out.num_users, _BLOCK_USERS):
        users = range(start, min(start + _BLOCK_USERS, held_out.num_users))
        chosen_BN = torch.zeros(len(users), num_items)
        for place, user in enumerate(users):
            chosen_BN[place, torch.from_numpy(history_and_targets(held_out, user)[0])] = 1
        scores_BN = baseline.scores_BN(chosen_BN)
        if exclude_history:
            scores_BN = scores_BN.masked_fill(chosen_BN > 0, -torch.inf)
        top_UM[start : users.stop] = scores_BN.topk(depth, dim=1).indices.numpy()
    return Ranking(top_UM=top_UM, interest_cosine=1.0)


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """How many users chose both of two items: dense [N, N]."""
    with warnings.catch_warnings():
        # The product goes by way of a layout that PyTorch still calls beta; its values are tested here.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        together_NN: torch.Tensor = torch.sparse.mm(matrix.t(), matrix).to_dense()
    return together_NN


def _user_items(train: Sequences, num_items: int) -> torch.Tensor:
    """Who chose what in training: sparse [U, N], 1 where chosen at least once."""
    users_E = np.repeat(np.arange(train.num_users), np.diff(train.offsets_U1))
    pairs = np.unique(users_E * num_items + train.items_E)
    places = torch.from_numpy(np.stack([pairs // num_items, pairs % num_items]))
    return torch.sparse_coo_tensor(
        places, torch.ones(len(pairs)), (train.num_users, num_items), check_invariants=True
    ).coalesce()
