"""Mean-pooled history: one interest, the plain mean of the history's item vectors.

The baseline without encoder weights: only item vectors are learned.
"""

from torch import Tensor

from re4.training.encoders.encoder import Encoded, Encoder, even_attention


class MeanPoolEncoder(Encoder):
    """The mean of the history, every item with the same weight."""

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Take the mean over the valid positions."""
        attention_BKL = even_attention(history_vectors_BLD, lengths_B)
        return Encoded(
            interests_BKD=self.scaled(attention_BKL @ history_vectors_BLD), attention_BKL=attention_BKL
        )
