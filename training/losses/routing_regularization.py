"""Routing regularisation: an interest should not depend on a single item of the history.

`L_RR = ‖diag(C)‖²` with `C = (A − Ā)(A − Ā)ᵀ` over the history's items, A the attention [K, n]: the
sum over interests of the squared spread of its attention. Source: Xie et al., REMI, RecSys 2023.
"""

from torch import Tensor

from re4.training.kernels.masks import valid_mask


def routing_regularization_sum(attention_BKL: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the sum over users, a scalar."""
    length = attention_BKL.shape[2]
    valid_BL = valid_mask(lengths_B, length)
    mean_BK1 = attention_BKL.sum(dim=2, keepdim=True) / lengths_B[:, None, None]
    spread_BK = ((attention_BKL - mean_BK1).square() * valid_BL[:, None, :]).sum(dim=2)
    return spread_BK.square().sum()
