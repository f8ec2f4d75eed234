"""Re4's forward flow: attention, then `z_k = Σ_j a[k,j] W2 x_j`.

Source: Zhang et al., "Re4: Learning to Re-contrast, Re-attend, Re-construct for Multi-interest
Recommendation", WWW 2022, equations of the forward flow.
"""

from torch import Tensor, nn

from training.config import TrainConfig
from training.encoders.attention import AttentionEncoder


class Re4Encoder(AttentionEncoder):
    """Attention over the history with values mapped by W2 [D, D]."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.W2 = nn.Linear(config.embedding_dim, config.embedding_dim, bias=False)
        # Starting at the identity, interests start inside the items' own space.
        nn.init.eye_(self.W2.weight)

    def values(self, history_vectors_BLD: Tensor) -> Tensor:
        """Map each item vector by W2."""
        values_BLD: Tensor = self.W2(history_vectors_BLD)
        return values_BLD
