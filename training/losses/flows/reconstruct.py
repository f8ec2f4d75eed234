"""Re-construct: the history items that an interest stands for should be recoverable from it.

`C_k = W4 z_k`, reshaped to L pieces of width D_b; piece i is weighted for history position j by
`β[k,i,j] = softmax_i( v_j · tanh(W3 c_{k,i}) )` over the valid positions, and `x̂_{k,j} = Σ_i
β[k,i,j] W5 c_{k,i}`. The loss is the mean over positives of `‖x̂_{k,j} − x_j‖²`. W4 has a bias, as
in the authors' code and unlike the equations; it starts at 0.

The pieces c themselves are not computed: `W3 c` and `W5 c` are linear in z, so W3 W4 and W5 W4 are
multiplied once a step and applied to an interest, instead of W4 once and W3 and W5 L times.
"""

from torch import Tensor, nn

from re4.training.kernels.parallel import with_gradients
from re4.training.losses.fused_reconstruction import (
    DecoderWeights,
    fused_reconstruction_sum,
    reconstruct_histories,
)


class Reconstruct(nn.Module):
    """The decoder of the re-construct flow and its loss."""

    def __init__(self, *, embedding_dim: int, max_history_length: int, construct_dim: int) -> None:
        super().__init__()
        self.W4 = nn.Linear(embedding_dim, max_history_length * construct_dim)
        self.W3 = nn.Linear(construct_dim, construct_dim, bias=False)
        self.v = nn.Linear(construct_dim, max_history_length, bias=False)
        self.W5 = nn.Linear(construct_dim, embedding_dim, bias=False)
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
            [B, K, L, D]; positions beyond a user's length have no meaning.
        """
        batch, num_interests, _ = interests_BKD.shape
        rebuilt = reconstruct_histories(
            interests_BKD.flatten(0, 1),
            lengths_B.repeat_interleave(num_interests),
            self.decoder().first(length),
        )
        return rebuilt.history_Zjd.view(batch, num_interests, length, -1)

    def decoder(self) -> DecoderWeights:
        """Return W3 W4 and W5 W4 with their biases, and the position queries, as the weights' own type."""
        construct_dim, dim = self.W3.in_features, self.W4.in_features
        W4 = self.W4.weight.view(-1, construct_dim, dim)
        bias = self.W4.bias.view(-1, construct_dim)
        matrices = (self.W3.weight, self.W5.weight)
        weights = [(matrix @ W4).flatten(0, 1) for matrix in matrices]
        biases = [(bias @ matrix.T).flatten() for matrix in matrices]
        parts = (weights[0], biases[0], weights[1], biases[1], self.v.weight)
        return DecoderWeights(*(part.to(W4.dtype) for part in parts))


def reconstruct_sum(
    *,
    decoder: DecoderWeights,
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    positives_BKL: Tensor,
    lengths_B: Tensor,
) -> Tensor:
    """Return the sum over positives of the squared distance, a scalar."""
    inputs = (interests_BKD, history_vectors_BLD, *decoder)
    total, gradients = fused_reconstruction_sum(
        *(tensor.detach() for tensor in inputs), positives_BKL=positives_BKL, lengths_B=lengths_B
    )
    return with_gradients(total, inputs, gradients)
