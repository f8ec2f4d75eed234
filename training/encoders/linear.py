"""Linear models that are served: one interest, a weighted sum of the history's item vectors.

A linear model has a matrix of item-to-item weights, approximated as `W[i,j] ≈ w_i (q_i · λ q_j)`
(`trainer/linear_models.py`). An item's vector is `[q_i, w_i]`: the last number is its weight as a part
of a history. The interest is `[λ Σ_i w_i q_i, 0]`, so that its inner product with the vector of item j
is the sum of `W[i,j]` over the history. Newer events count more: an event's weight is multiplied by
`recency_decay` for each newer event.
"""

import torch
from torch import Tensor

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.kernels.masks import valid_mask

_SMALL = 1e-20


class LinearEncoder(Encoder):
    """The sum over the history; nothing is trained by steps."""

    scales: Tensor
    """λ [D - 1]."""
    recency: Tensor
    """Weight of each place of a history [L], newest first."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.register_buffer("scales", torch.ones(config.embedding_dim - 1))
        self.register_buffer("recency", config.recency_decay ** torch.arange(config.L, dtype=torch.float32))

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Sum up; the attention of an event is its share of the history's weights."""
        length = history_vectors_BLD.shape[1]
        weights_BL = history_vectors_BLD[:, :, -1] * self.recency[:length] * valid_mask(lengths_B, length)
        sums_BD = (weights_BL[:, :, None] * history_vectors_BLD[:, :, :-1]).sum(dim=1) * self.scales
        interests_B1D = torch.cat([sums_BD, torch.zeros_like(sums_BD[:, :1])], dim=1)[:, None]
        shares_BL = weights_BL.abs() / weights_BL.abs().sum(dim=1, keepdim=True).clamp_min(_SMALL)
        return Encoded(interests_BKD=interests_B1D, attention_BKL=shares_BL[:, None])
