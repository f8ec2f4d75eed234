"""EASE and item-item cosine as models with item vectors: a low-rank form of their matrices.

Both matrices become symmetric when rows and columns are scaled. EASE: with `P = (XᵀX + λI)⁻¹` and
`d = diag(P)` the weights are `B = I - P / d`, and `d^-1/2 (d - P) d^-1/2` is symmetric. Its eigenvectors
of the largest absolute eigenvalues give `B[i,j] ≈ d_i (q_i · Λ q_j)` with `q = V d^-1/2`. Item-item cosine
is symmetric as it is: `d = 1`. The eigenvectors come from a block power iteration.
"""

import torch
from torch import Tensor

from re4.common.errors import TrainingError
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.encoders.linear import LinearEncoder
from re4.training.evaluation.baselines import MAX_EASE_ITEMS, cosine_weights, inverse_gram
from re4.training.model.model import MultiInterestModel

_OVERSAMPLING = 16
_NUM_POWER_ITERATIONS = 8


def fit_linear_model(model: MultiInterestModel, dataset: Dataset) -> None:
    """Set the item vectors and the encoder's scales of an `ease` or `item-item` model.

    Raises:
        TrainingError: the catalogue is too large for a matrix of items by items.
    """
    config, num_items = model.config, dataset.num_items
    if num_items > MAX_EASE_ITEMS:
        raise TrainingError(
            f"--model {config.model} needs a matrix of {num_items:,} by {num_items:,} items; it is made for "
            f"up to {MAX_EASE_ITEMS:,} items. Train another model, or raise --min-events of re4 data prepare."
        )
    vectors_ND, scales_D = linear_factors(dataset, config)
    assert isinstance(model.encoder, LinearEncoder), "only linear models are fitted"
    model.encoder.scales.copy_(scales_D)
    model.set_item_vectors(vectors_ND)


def linear_factors(dataset: Dataset, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Return the item vectors [N, D] and the scales λ [D - 1] of the model that the settings name."""
    if config.model == "ease":
        symmetric_NN = inverse_gram(dataset.train, dataset.num_items, penalty=config.ease_penalty)
        weights_N = symmetric_NN.diagonal().clone()
        root_N = weights_N.sqrt()
        symmetric_NN.div_(-root_N[:, None]).div_(root_N[None, :]).fill_diagonal_(0)
    else:
        symmetric_NN = cosine_weights(dataset.train, dataset.num_items)
        weights_N = root_N = torch.ones(dataset.num_items)
    generator = torch.Generator().manual_seed(config.seed)
    scales_D, basis_ND = _largest_eigenvectors(symmetric_NN, config.embedding_dim - 1, generator)
    # Vectors of a mean square length of 1, and weights with a mean of 1, as other models have.
    length, weight = (basis_ND / root_N[:, None]).square().sum(dim=1).mean().sqrt(), weights_N.mean()
    vectors_ND = torch.cat([basis_ND / root_N[:, None] / length, weights_N[:, None] / weight], dim=1)
    return vectors_ND, scales_D * length**2 * weight


def _largest_eigenvectors(
    symmetric_NN: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [D], by absolute size, and eigenvectors [N, D]; zeros beyond the matrix's size."""
    num_items = len(symmetric_NN)
    block = min(count + _OVERSAMPLING, num_items)
    basis_ND = torch.randn(num_items, block, generator=generator)
    for _ in range(_NUM_POWER_ITERATIONS):
        basis_ND, _ = torch.linalg.qr(symmetric_NN @ basis_ND)
    values, inner = torch.linalg.eigh((basis_ND.T @ (symmetric_NN @ basis_ND)).double())
    largest = values.abs().argsort(descending=True)[:count]
    missing = count - len(largest)
    found_ND = basis_ND @ inner[:, largest].float()
    return (
        torch.cat([values[largest].float(), torch.zeros(missing)]),
        torch.cat([found_ND, torch.zeros(num_items, missing)], dim=1),
    )
