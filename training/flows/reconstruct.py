"""Re-construct: an interest should hold enough to give back the history items that it stands for.

`C_k = W4 z_k`, reshaped to L pieces of width D_b; piece i is weighted for history position j by
`β[k,i,j] = softmax_i( v_j · tanh(W3 c_{k,i}) )` over the valid positions, and
`x̂_{k,j} = W5 Σ_i β[k,i,j] c_{k,i}` (W5 is applied after the sum: the same by linearity, L times
cheaper). The loss is the mean over positives of `‖x̂_{k,j} − x_j‖²`. W4 has a bias, which the authors'
code has and the equations leave out; it starts at 0.
"""

import torch
from torch import Tensor, nn


class Reconstruct(nn.Module):
    """The decoder of the re-construct flow and its loss."""

    def __init__(self, *, embedding_dim: int, max_history_length: int, construct_dim: int) -> None:
        super().__init__()
        self.W4 = nn.Linear(embedding_dim, max_history_length * construct_dim)
        self.W3 = nn.Linear(construct_dim, construct_dim, bias=False)
        self.v = nn.Linear(construct_dim, max_history_length, bias=False)
        self.W5 = nn.Linear(construct_dim, embedding_dim, bias=False)
        self._construct_dim = construct_dim
        for layer in (self.W4, self.W3, self.v, self.W5):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.W4.bias)

    def forward(self, interests_BKD: Tensor, lengths_B: Tensor, length: int) -> Tensor:
        """Reconstruct the history from each interest.

        Args:
            interests_BKD: the interests.
            lengths_B: int64, valid positions of each history.
            length: L, positions to reconstruct, at most `max_history_length`.

        Returns:
            [B, K, L, D]; positions beyond a user's length mean nothing.
        """
        batch, num_interests, _ = interests_BKD.shape
        pieces_BKLD = self.W4(interests_BKD).view(batch, num_interests, -1, self._construct_dim)[
            :, :, :length
        ]
        logits_BKij = self.v(torch.tanh(self.W3(pieces_BKLD)))[..., :length]
        padding_Bi = torch.arange(length, device=lengths_B.device)[None, :] >= lengths_B[:, None]
        share_BKij = logits_BKij.masked_fill(padding_Bi[:, None, :, None], -torch.inf).softmax(dim=2)
        reconstruction_BKLD: Tensor = self.W5(share_BKij.transpose(2, 3) @ pieces_BKLD)
        return reconstruction_BKLD

    def loss(
        self, *, interests_BKD: Tensor, history_vectors_BLD: Tensor, positives_BKL: Tensor, lengths_B: Tensor
    ) -> Tensor:
        """Give the mean over positives of the squared distance, a scalar; 0 where there is none."""
        length = history_vectors_BLD.shape[1]
        reconstruction_BKLD: Tensor = self(interests_BKD, lengths_B, length)
        distance_BKL = (reconstruction_BKLD - history_vectors_BLD[:, None]).square().sum(dim=3)
        return (distance_BKL * positives_BKL).sum() / positives_BKL.sum().clamp_min(1)
