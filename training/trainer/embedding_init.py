"""Initial item vectors: items that the same users chose start close together.

The truncated SVD of the degree-normalised user-item matrix, `D_u^-1/2 R D_i^-1/2 ≈ U S Vᵀ`, gives
item vectors `V S^1/2`. It takes a fraction of an epoch's time and saves several epochs; on small
data the recall also ends higher than from a random start. Randomised range finder with power
iterations: Halko, Martinsson and Tropp, 2011.

Its cost is bounded: beyond 20 million events it uses a random part of the users, and by default
catalogues beyond `SVD_ITEMS` start at random (`TrainConfig.resolve`).

The most-popular baseline has vectors on one axis instead: the log of each item's count.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from re4.training.data.dataset import Sequences

_OVERSAMPLING = 16
_NUM_POWER_ITERATIONS = 4
_MAX_EVENTS = 20_000_000


def svd_item_vectors(
    train: Sequences, num_items: int, embedding_dim: int, generator: torch.Generator
) -> Tensor:
    """Return starting vectors, float32 [N, D], of mean square length 1.

    Items without a training event, and dimensions beyond the matrix's rank, get small random
    numbers.
    """
    users, items, num_users = _pairs(train, num_items, generator)
    by_user = torch.bincount(users, minlength=num_users).float()
    by_item = torch.bincount(items, minlength=num_items).float()
    weights = (by_user[users] * by_item[items]).rsqrt()

    to_users = torch.sparse_coo_tensor(
        torch.stack([users, items]), weights, (num_users, num_items), check_invariants=True
    ).coalesce()
    to_items = to_users.t().coalesce()
    rank = min(embedding_dim + _OVERSAMPLING, num_items, num_users)
    basis = _orthonormal(to_users @ torch.randn(num_items, rank, generator=generator))
    for _ in range(_NUM_POWER_ITERATIONS):
        basis = _orthonormal(to_items @ basis)
        basis = _orthonormal(to_users @ basis)
    image = to_items @ basis
    squares, right = _spectrum(image)  # the image is U S Vᵀ: times V S^-1/2 it is U S^1/2
    found = image @ (right * squares ** (-1 / 4))[:, :embedding_dim].float()
    vectors_ND: Tensor = (
        0.1 * torch.randn(num_items, embedding_dim, generator=generator) * embedding_dim**-0.5
    )
    seen_N = by_item > 0
    scale = (seen_N.sum() / found[seen_N].square().sum()).sqrt()
    vectors_ND[seen_N, : found.shape[1]] = (found * scale)[seen_N]
    return vectors_ND


def _orthonormal(tall: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns, by a Gram matrix and two products; a QR takes minutes."""
    squares, right = _spectrum(tall)
    return tall @ (right * squares.rsqrt()).float()


def _spectrum(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values, largest first, and the right singular vectors; float64.

    Singular values at the level of rounding are left out.
    """
    squares, right = torch.linalg.eigh((tall.T @ tall).double())
    squares, right = squares.flip(0), right.flip(1)
    is_there = squares > 1e-6 * squares[0]
    return squares[is_there], right[:, is_there]


def _pairs(train: Sequences, num_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Return each pair of user and item once, int64, and the number of users."""
    lengths_U = np.diff(train.offsets_U1)
    items_E: NDArray[np.int32] = train.items_E
    if train.num_events > _MAX_EVENTS:
        drawn_U = torch.rand(train.num_users, generator=generator).numpy()
        is_seen_U = drawn_U < _MAX_EVENTS / train.num_events
        items_E, lengths_U = items_E[np.repeat(is_seen_U, lengths_U)], lengths_U[is_seen_U]
    users_E = np.repeat(np.arange(len(lengths_U)), lengths_U)
    pairs = np.unique(users_E * num_items + items_E)
    return torch.from_numpy(pairs // num_items), torch.from_numpy(pairs % num_items), len(lengths_U)


def popularity_vectors(item_counts_N: Tensor, embedding_dim: int) -> Tensor:
    """Return starting vectors, float32 [N, D]: `log(1 + count)` on the first axis, 0 on the others."""
    vectors_ND = torch.zeros(len(item_counts_N), embedding_dim)
    vectors_ND[:, 0] = item_counts_N.double().log1p()
    return vectors_ND
