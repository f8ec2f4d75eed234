"""MIND's forward flow: dynamic routing of the history to interest capsules, fewer for short
histories.

All pairs share one bilinear map S. The routing logits `b[k,j]` start from a normal draw and are not
learned; from equal logits all interests would stay equal. In each of three rounds

    w[·,j] = softmax_k b[k,j]      z_k = squash( Σ_j w[k,j] S x_j )      b[k,j] += z_k · S x_j

with `squash(s) = ‖s‖² / (1 + ‖s‖²) · s / ‖s‖`. A history of n items has `max(1, min(K, ⌊log2 n⌋))`
interests. The rest repeat the first one and attend to nothing. Gradients flow through the last
round only, as in the authors' code. Source: Li et al., "Multi-Interest Network with Dynamic Routing
for Recommendation at Tmall", CIKM 2019.
"""

import torch
from torch import Tensor, nn

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.kernels.masks import valid_mask

_NUM_ROUNDS = 3
_SMALL = 1e-9


class MindEncoder(Encoder):
    """Behaviour-to-interest dynamic routing."""

    routing: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.S = nn.Linear(config.embedding_dim, config.embedding_dim, bias=False)
        # From the identity, interests start in the space of the item vectors.
        nn.init.eye_(self.S.weight)
        self.register_buffer("routing", torch.randn(config.K, config.L))

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Route the history to as many interests as its length allows."""
        length, num_interests = history_vectors_BLD.shape[1], self.routing.shape[0]
        numbers_K = torch.arange(num_interests, device=lengths_B.device)
        # ⌊log2 n⌋ interests: number k, from 0, exists where 2^(k+1) <= n; the first one always exists.
        active_BK = (lengths_B[:, None] >= 2 ** (numbers_K + 1)) | (numbers_K == 0)
        valid_BL = valid_mask(lengths_B, length)
        mapped_BLD = self.S(history_vectors_BLD) * valid_BL[:, :, None]
        fixed_BLD = mapped_BLD.detach()
        logits_BKL = self.routing[:, :length] + torch.zeros_like(fixed_BLD[:, :1, :1])
        for _ in range(_NUM_ROUNDS - 1):
            capsules_BKD = _squash(_shares(logits_BKL, active_BK) @ fixed_BLD)
            logits_BKL = logits_BKL + capsules_BKD @ fixed_BLD.transpose(1, 2)
        shares_BKL = _shares(logits_BKL, active_BK) * valid_BL[:, None, :]
        interests_BKD = self.scaled(_squash(shares_BKL @ mapped_BLD))
        return Encoded(
            interests_BKD=torch.where(active_BK[:, :, None], interests_BKD, interests_BKD[:, :1]),
            attention_BKL=shares_BKL / shares_BKL.sum(dim=2, keepdim=True).clamp_min(_SMALL),
            active_BK=active_BK,
        )


def _shares(logits_BKL: Tensor, active_BK: Tensor) -> Tensor:
    """Return the share of each item in the existing interests; 0 in the others."""
    return logits_BKL.masked_fill(~active_BK[:, :, None], -torch.inf).softmax(dim=1)


def _squash(sums_BKD: Tensor) -> Tensor:
    square_BK1 = sums_BKD.square().sum(dim=2, keepdim=True)
    return sums_BKD * (square_BK1 / (1 + square_BK1) * (square_BK1 + _SMALL).rsqrt())
