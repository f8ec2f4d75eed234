"""Self-attention over a history, once per interest: what Re4 and ComiRec-SA share.

`a[k,j] = softmax_j( w_k · tanh(W1 x_j) )` over the valid positions j of a history. A subclass makes
the interests from the attention (`pool`). In training on a CPU a C kernel computes the attention
and its gradients (`kernels/attention.c`).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from re4.training.config import TrainConfig
from re4.training.encoders.encoder import Encoded, Encoder
from re4.training.encoders.transformer import TransformerBlocks
from re4.training.kernels import call_kernel, kernel_for
from re4.training.kernels.masks import valid_mask


class AttentionEncoder(Encoder):
    """K attentions over the history, each the source of one interest."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        dim, width = config.embedding_dim, config.attention_dim
        self.transformer = TransformerBlocks(config) if config.num_blocks else None
        self.W1 = nn.Linear(dim, width, bias=False)
        self.w = nn.Linear(width, config.K, bias=False)
        self.position: nn.Parameter | None = None
        if config.position:
            self.position = nn.Parameter(torch.randn(config.L, dim) * dim**-0.5)
        self.head = nn.Linear(dim, dim) if config.head else None
        for layer in (self.W1, self.w):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def pool(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Make the interests from the attention, before the head: [B, K, D]."""
        raise NotImplementedError

    def log_attention(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return `log a` [B, K, L]; minus infinity on padding."""
        if self.training:
            compiled = _kernel_for(history_vectors_BLD, self.W1.weight, self.w.weight)
            if compiled is not None:
                apply: Callable[..., Tensor] = _LogAttention.apply  # some versions of PyTorch type it
                weights = (self.position, self.W1.weight, self.w.weight)
                return apply(compiled, history_vectors_BLD, lengths_B, *weights)
        attended_BLD = history_vectors_BLD
        length = attended_BLD.shape[1]
        if self.position is not None:
            attended_BLD = attended_BLD + self.position[:length]
        valid_BL = valid_mask(lengths_B, length)
        if self.training:  # padding is skipped; the exported graph has fixed shapes
            logits_BLK = attended_BLD.new_full((*valid_BL.shape, self.w.out_features), -torch.inf)
            logits_BLK[valid_BL] = self._logits(attended_BLD[valid_BL]).to(logits_BLK.dtype)
        else:
            logits_BLK = self._logits(attended_BLD).masked_fill(~valid_BL[:, :, None], -torch.inf)
        return torch.log_softmax(logits_BLK.transpose(1, 2), dim=2)

    def _logits(self, attended: Tensor) -> Tensor:
        logits: Tensor = self.w(torch.tanh(self.W1(attended)))
        return logits

    def interests(self, history_vectors_BLD: Tensor, attention_BKL: Tensor) -> Tensor:
        """Return the interests [B, K, D] that the attention makes from the history."""
        interests_BKD = self.pool(history_vectors_BLD, attention_BKL)
        if self.head is not None:
            interests_BKD = torch.tanh(self.head(interests_BKD))
        return self.scaled(interests_BKD)

    def encode(self, history_vectors_BLD: Tensor, lengths_B: Tensor) -> Encoded:
        """Attend, then pool; both read the outputs of the transformer blocks, where there are any."""
        if self.transformer is not None:
            history_vectors_BLD, _ = self.transformer(history_vectors_BLD, lengths_B)
        log_attention_BKL = self.log_attention(history_vectors_BLD, lengths_B)
        attention_BKL = log_attention_BKL.exp()
        return Encoded(
            interests_BKD=self.interests(history_vectors_BLD, attention_BKL),
            attention_BKL=attention_BKL,
            log_attention_BKL=log_attention_BKL,
        )


def _kernel_for(history_vectors_BLD: Tensor, W1_HD: Tensor, w_KH: Tensor) -> ctypes.CDLL | None:
    """Load the kernel for tensors like these; None where there is none."""
    width, dim = W1_HD.shape
    return kernel_for(history_vectors_BLD, "attention.c", {"DIM": dim, "WIDTH": width}, HEADS=len(w_KH))


class _LogAttention(torch.autograd.Function):
    """`log a` [B, K, L] by the kernel, minus infinity on padding, and its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        compiled: ctypes.CDLL,
        history_vectors_BLD: Tensor,
        lengths_B: Tensor,
        positions: Tensor | None,
        W1_HD: Tensor,
        w_KH: Tensor,
    ) -> Tensor:
        history_vectors_BLD, lengths_B = history_vectors_BLD.contiguous(), lengths_B.contiguous()
        size, length, _ = history_vectors_BLD.shape
        log_attention_BKL = history_vectors_BLD.new_empty(size, len(w_KH), length)
        given = (history_vectors_BLD, lengths_B, positions, W1_HD, w_KH)
        if call_kernel(compiled.attention_forward, size, length, *given, log_attention_BKL):
            raise MemoryError("no memory is left to attend in")
        ctx.compiled = compiled
        ctx.save_for_backward(*given, log_attention_BKL)
        return log_attention_BKL

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        *given, log_attention_BKL = ctx.saved_tensors
        history_vectors_BLD, _, *weights = given
        inputs = (history_vectors_BLD, *weights)
        gradients = tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in inputs)
        of_attention_BKL = outer[0].contiguous().clone()
        sizes = history_vectors_BLD.shape[:2]
        if call_kernel(
            ctx.compiled.attention_backward, *sizes, *given, log_attention_BKL, of_attention_BKL, *gradients
        ):
            raise MemoryError("no memory is left to go back through the attention in")
        of_history_BLD, *of_weights = gradients
        return (None, of_history_BLD, None, *of_weights)
