"""The logarithm of an attention by compiled code, forward and backward (see `re4.training.kernels`)."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from re4.training.kernels import call_kernel, kernel_for


def compiled_for(history_vectors_BLD: Tensor, W1_HD: Tensor, w_KH: Tensor) -> ctypes.CDLL | None:
    """The compiled code for tensors like these; None where there is none."""
    width, dim = W1_HD.shape
    return kernel_for(history_vectors_BLD, "attention.c", {"DIM": dim, "WIDTH": width}, HEADS=len(w_KH))


def log_attention(
    compiled: ctypes.CDLL,
    history_vectors_BLD: Tensor,
    lengths_B: Tensor,
    positions: Tensor | None,
    W1_HD: Tensor,
    w_KH: Tensor,
) -> Tensor:
    """Give `log a` [B, K, L], minus infinity on padding; positions [L or more, D] are added to histories."""
    apply: Callable[..., Tensor] = _LogAttention.apply  # typed by some versions of PyTorch only
    return apply(compiled, history_vectors_BLD, lengths_B, positions, W1_HD, w_KH)


class _LogAttention(torch.autograd.Function):
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
