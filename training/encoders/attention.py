"""Self-attention over a history, once per interest: what Re4 and ComiRec-SA share.

`a[k,j] = softmax_j( w_k · tanh(W1 x_j) )` over the valid positions j of a history. What an interest is
made of from these weights is the subclass's part (`pool`).
"""

import torch
from torch import Tensor, nn

from re4.training.config import TrainConfig
from re4.training.encoders.compiled_attention import compiled_for, log_attention
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.kernels.masks import valid_mask


class AttentionEncoder(Encoder):
    """K attentions over the history, each the source of one interest."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        dim, width = config.embedding_dim, config.attention_dim
        self.W1 = nn.Linear(dim, width, bias=False)
        self.w = nn.Linear(width, config.K, bias=False)
        self.position: nn.Parameter | None = None
        if config.position:
            self.position = nn.Parameter(torch.randn(config.max_history_length, dim) * dim**-0.5)
        self.head = nn.Linear(dim, dim) if config.head else None
        for layer in (self.W1, self.w):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def pool(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Give what the attention makes of the history, before the head: [B, K, D]."""
        raise NotImplementedError

    def log_attention(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Give `log a` [B, K, L]; minus infinity on padding."""
        if self.training:
            compiled = compiled_for(history_vectors_BLD, self.W1.weight, self.w.weight)
            if compiled is not None:
                return log_attention(
                    compiled, history_vectors_BLD, lengths_B, self.position, self.W1.weight, self.w.weight
                )
        attended_BLD = history_vectors_BLD
        length = attended_BLD.shape[1]
        if self.position is not None:
            attended_BLD = attended_BLD + self.position[:length]
        valid_BL = valid_mask(lengths_B, length)
        if self.training:  # padding is left out of the work; the exported graph has fixed shapes instead
            logits_BLK = attended_BLD.new_full((*valid_BL.shape, self.w.out_features), -torch.inf)
            logits_BLK[valid_BL] = self._logits(attended_BLD[valid_BL]).to(logits_BLK.dtype)
        else:
            logits_BLK = self._logits(attended_BLD).masked_fill(~valid_BL[:, :, None], -torch.inf)
        return torch.log_softmax(logits_BLK.transpose(1, 2), dim=2)

    def _logits(self, attended: Tensor) -> Tensor:
        logits: Tensor = self.w(torch.tanh(self.W1(attended)))
        return logits

    def interests(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Give the interests [B, K, D] that these attentions make of the history."""
        interests_BKD = self.pool(history_vectors_BLD, attention_BKL)
        if self.head is not None:
            interests_BKD = torch.tanh(self.head(interests_BKD))
        return self.scaled(interests_BKD)

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Attend, then pool."""
        log_attention_BKL = self.log_attention(history_vectors_BLD, lengths_B)
        attention_BKL = log_attention_BKL.exp()
        return Encoded(
            interests_BKD=self.interests(history_vectors_BLD, attention_BKL),
            attention_BKL=attention_BKL,
            log_attention_BKL=log_attention_BKL,
        )
