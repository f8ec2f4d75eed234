"""The base class of encoders, its output, and the scale of the scores.

An encoder holds no item vectors. Histories are newest first, padded at the end; a length is at
least 1. With `scores = "cosine"` interests are normalised, and with a temperature they are divided
by it, both inside the forward flow: the inner product of interest and item vector is the score of
training in the index, in the merge and in replies.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from re4.training.config import TrainConfig
from re4.training.kernels.masks import valid_mask


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The interests of a batch of histories, and the attention that they were made from."""

    interests_BKD: Tensor
    """As served. A user with fewer than K interests has the first one repeated, so that the maximum
    over interests needs no mask."""
    attention_BKL: Tensor
    """Shares of the history's items, 0 on padding. A row sums to 1; to 0 for a repeated interest."""
    log_attention_BKL: Tensor | None = None
    """Of encoders with attention, the input of the backward flows; minus infinity on padding."""
    active_BK: Tensor | None = None
    """Which interests a user has, bool; None where every user has all K."""


class Encoder(nn.Module):
    """The forward flow: from the item vectors of a history to K interests."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self._is_cosine = config.scores == "cosine"
        self._temperature = config.temperature

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Encode histories; see `forward` for the arguments."""
        raise NotImplementedError

    def encode_positions(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the interests at every valid position [P, K, D], by user and then newest first.

        Only a causal encoder has it, for training at every position.
        """
        raise NotImplementedError

    def forward(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Run the forward flow, as it is exported.

        Args:
            history_vectors_BLD: item vectors, newest first, padded at the end with anything finite.
            lengths_B: int64, valid positions of each history, at least 1.

        Returns:
            interests [B, K, D] and attention [B, K, L], which is 0 on padding.
        """
        encoded = self.encode(history_vectors_BLD, lengths_B)
        return encoded.interests_BKD, encoded.attention_BKL

    def scaled(self, interests_BKD: Tensor) -> Tensor:
        """Scale interests so that their inner products with items are scores."""
        if self._is_cosine:
            interests_BKD = F.normalize(interests_BKD, dim=2)
        return interests_BKD if self._temperature == 1 else interests_BKD / self._temperature


def even_attention(history_vectors_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """Return every item of a history the same share: [B, 1, L]."""
    valid_BL = valid_mask(lengths_B, history_vectors_BLD.shape[1]).to(history_vectors_BLD.dtype)
    return (valid_BL / lengths_B[:, None])[:, None, :]
