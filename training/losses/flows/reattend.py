"""Re-attend: the attention behind an interest should agree with the interest's scores of the
history.

`â[k,j] = softmax_j( z_k · x_j )` over the history is the target; the loss is the cross entropy
between it and the attention `a`, meaned over users and interests. The gradient flows through both.
"""

import ctypes

import torch
from torch import Tensor

from re4.training.kernels import call_kernel, kernel_for
from re4.training.kernels.masks import valid_mask
from re4.training.kernels.parallel import with_gradients


def reattend_sum(
    *, interests_BKD: Tensor, history_vectors_BLD: Tensor, log_attention_BKL: Tensor, lengths_B: Tensor
) -> Tensor:
    """Return the sum over (user, interest) of the cross entropy, a scalar."""
    compiled = kernel_for(interests_BKD, "reattend.c", {"DIM": interests_BKD.shape[2]})
    if compiled is not None:
        inputs = (interests_BKD, history_vectors_BLD, log_attention_BKL)
        total, gradients = _compiled_sum(compiled, *inputs, lengths_B)
        return with_gradients(total, inputs, gradients)
    length = history_vectors_BLD.shape[1]
    padding_BL = ~valid_mask(lengths_B, length)
    scores_BKL = interests_BKD @ history_vectors_BLD.transpose(1, 2)
    target_BKL = scores_BKL.masked_fill(padding_BL[:, None, :], -torch.inf).softmax(dim=2)
    return -(target_BKL * log_attention_BKL.masked_fill(padding_BL[:, None, :], 0)).sum()


def _compiled_sum(
    compiled: ctypes.CDLL,
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    log_attention_BKL: Tensor,
    lengths_B: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum, and its gradients by interests, history and log attention."""
    shape_BKL = log_attention_BKL.shape
    gradients = (
        interests_BKD.new_zeros(interests_BKD.shape),
        history_vectors_BLD.new_zeros(history_vectors_BLD.shape),
        log_attention_BKL.new_empty(shape_BKL),
    )
    total = torch.zeros((), dtype=torch.float64)
    call_kernel(
        compiled.reattend,
        *shape_BKL,
        interests_BKD.contiguous(),
        history_vectors_BLD.contiguous(),
        log_attention_BKL.contiguous(),
        lengths_B.contiguous(),
        torch.empty(shape_BKL[2]),
        total,
        *gradients,
    )
    return total.float(), gradients
