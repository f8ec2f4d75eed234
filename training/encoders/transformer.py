"""A causal transformer over the history: the interests are made from the output at the newest event.

One interest is the output itself. Of several, each is the output plus a linear map of it, one map an
interest.

Each event attends to itself and to the events before it, so that training can use every position of
a history as the newest one of a shorter history. Blocks are pre-norm. A learned bias by distance, in
events, takes the place of position vectors: an interest then depends on how far back an event is, and
not on its place in the window. A block starts as the identity, so that interests start in the space
of the item vectors. Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.kernels.masks import valid_mask

_NUM_HEADS = 2
_MAP_SCALE, _OFFSET_SCALE = 0.3, 0.1
"""Standard deviations of the initial maps and offsets of several interests, relative to `D ** -0.5`."""
_WIDENING = 2
"""Width of the layer between the two maps of a block's second half, in embedding dimensions."""


class TransformerBlocks(nn.Module):
    """Blocks of causal self-attention over histories that are newest first."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        assert config.num_blocks, "at least one block"
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))

    def forward(
        self, vectors_BLD: Tensor, lengths_B: Tensor, *, newest_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs [B, L, D] and the attention of the last block [B, L, L], mean of its heads.

        Args:
            vectors_BLD: Newest first, padded at the end.
            lengths_B: Valid positions.
            newest_only: Whether only the newest event's output and attention are computed: L is 1 in them.
        """
        places_L = torch.arange(vectors_BLD.shape[1], device=lengths_B.device)
        distances_LL = places_L[None, :] - places_L[:, None]
        # An event sees itself, also on padding, where a softmax over nothing would not be finite.
        allowed_BLL = (distances_LL >= 0) & valid_mask(lengths_B, vectors_BLD.shape[1])[:, None, :]
        allowed_BLL = allowed_BLL | (distances_LL == 0)
        attention_BLL = vectors_BLD
        for number, block in enumerate(self.blocks, start=1):
            num_queries = 1 if newest_only and number == len(self.blocks) else None
            vectors_BLD, attention_BLL = block(
                vectors_BLD, allowed_BLL, distances_LL.clamp_min(0), num_queries
            )
        return vectors_BLD, attention_BLL


class TransformerEncoder(Encoder):
    """One interest, the output at the newest event, or several, made from it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.transformer = TransformerBlocks(config)
        self.to_interests: nn.Linear | None = None
        if config.K > 1:
            dim = config.embedding_dim
            self.to_interests = nn.Linear(dim, config.K * dim)
            nn.init.normal_(self.to_interests.weight, std=_MAP_SCALE * dim**-0.5)
            nn.init.normal_(self.to_interests.bias, std=_OFFSET_SCALE * dim**-0.5)

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Compute the output at the newest event alone; the attention is that of the last block."""
        newest_B1D, attention_B1L = self.transformer(history_vectors_BLD, lengths_B, newest_only=True)
        interests_BKD = self._interests(newest_B1D)
        return Encoded(
            interests_BKD=interests_BKD,
            attention_BKL=attention_B1L.expand(-1, interests_BKD.shape[1], -1),
        )

    def encode_positions(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the interests at every position, as those of the history that ends there."""
        outputs_BLD, _ = self.transformer(history_vectors_BLD, lengths_B)
        return self._interests(outputs_BLD[valid_mask(lengths_B, outputs_BLD.shape[1])][:, None])

    def _interests(self, outputs_B1D: Tensor) -> Tensor:
        """Return the interests [B, K, D] of outputs."""
        if self.to_interests is not None:
            outputs_B1D = (
                outputs_B1D + self.to_interests(outputs_B1D).unflatten(2, (-1, outputs_B1D.shape[2]))[:, 0]
            )
        return self.scaled(outputs_B1D)


class _Block(nn.Module):
    """Self-attention, then two maps with a GELU between them; both are added to what came in."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self._num_heads = _NUM_HEADS if dim % _NUM_HEADS == 0 else 1
        self.norm_before_attention = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.by_distance = nn.Parameter(torch.zeros(self._num_heads, config.L))
        self.norm_before_maps = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, _WIDENING * dim)
        self.narrow = nn.Linear(_WIDENING * dim, dim)
        for layer in (self.query, self.key, self.value, self.widen):
            nn.init.normal_(layer.weight, std=dim**-0.5)
        for layer in (self.out, self.narrow):
            nn.init.zeros_(layer.weight)
        for layer in (self.widen, self.narrow):
            nn.init.zeros_(layer.bias)

    def forward(
        self, vectors_BLD: Tensor, allowed_BLL: Tensor, distances_LL: Tensor, num_queries: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs of the first positions (all for None), and the mean attention of the heads."""
        normal_BLD = self.norm_before_attention(vectors_BLD)
        query_BHQd = self._heads(self.query(normal_BLD[:, :num_queries]))
        key_BHLd, value_BHLd = self._heads(self.key(normal_BLD)), self._heads(self.value(normal_BLD))
        logits_BHQL = query_BHQd @ key_BHLd.transpose(2, 3) * query_BHQd.shape[3] ** -0.5
        logits_BHQL = logits_BHQL + self.by_distance[:, distances_LL[:num_queries]]
        logits_BHQL = logits_BHQL.masked_fill(~allowed_BLL[:, None, :num_queries], -torch.inf)
        attention_BHQL = logits_BHQL.softmax(dim=3)
        attended_BQD = (attention_BHQL @ value_BHLd).transpose(1, 2).flatten(2)
        outputs_BQD = vectors_BLD[:, :num_queries] + self.out(attended_BQD)
        outputs_BQD = outputs_BQD + self.narrow(F.gelu(self.widen(self.norm_before_maps(outputs_BQD))))
        return outputs_BQD, attention_BHQL.mean(dim=1)

    def _heads(self, vectors_BQD: Tensor) -> Tensor:
        """Cut vectors into heads: [B, H, Q, D / H]."""
        size, num_queries, dim = vectors_BQD.shape
        cut_BQHd = vectors_BQD.reshape(size, num_queries, self._num_heads, dim // self._num_heads)
        return cut_BQHd.transpose(1, 2)
