"""ComiRec-SA's forward flow: attention with a recency position, then `z_k = Σ_j a[k,j] x_j`.

Source: Cen et al., "Controllable Multi-Interest Framework for Recommendation", KDD 2020.
"""

from torch import Tensor

from re4.training.encoders.attention import AttentionEncoder


class ComiRecSAEncoder(AttentionEncoder):
    """Attention over the history; an interest is a weighted mean of item vectors."""

    def pool(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Take the weighted sum as it is."""
        return attention_BKL @ history_vectors_BLD
