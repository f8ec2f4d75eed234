"""Most popular: the same list for every user, as an encoder, so that it is exported and served like
others.

The one interest is the first axis, whatever the history; item vectors start at the log of the
item's count on that axis (`initial_vectors = "popularity"`), so scores are in order of popularity.
Nothing is trained.
"""

import torch
from torch import Tensor

from re4.training.encoders.encoder import Encoded, Encoder, even_attention


class MostPopularEncoder(Encoder):
    """A constant interest; every item of the history has the same attention."""

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Return the first axis for every user."""
        zero_B1D = torch.zeros_like(history_vectors_BLD[:, :1])
        return Encoded(
            interests_BKD=torch.cat([zero_B1D[:, :, :1] + 1, zero_B1D[:, :, 1:]], dim=2),
            attention_BKL=even_attention(history_vectors_BLD, lengths_B),
        )
