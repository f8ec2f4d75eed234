"""Re4's forward flow: attention, then `z_k = Σ_j a[k,j] W2 x_j`.

Source: Zhang et al., "Re4: Learning to Re-contrast, Re-attend, Re-construct for Multi-interest
Recommendation", WWW 2022, equations of the forward flow.
"""

from torch import Tensor, nn

from re4.training.config import TrainConfig
from re4.training.encoders.attention import AttentionEncoder


class Re4Encoder(AttentionEncoder):
    """Attention over the history; an interest is a weighted sum of item vectors, mapped by W2 [D, D]."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.W2 = nn.Linear(config.embedding_dim, config.embedding_dim, bias=False)
        # From the identity, interests start in the space of the item vectors.
        nn.init.eye_(self.W2.weight)

    def pool(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Map the weighted sum by W2: the same as summing mapped vectors, and K / L as much work."""
        interests_BKD: Tensor = self.W2(attention_BKL @ history_vectors_BLD)
        return interests_BKD
