"""Re-attend: the attention that made an interest should agree with the scores that the interest gives.

`â[k,j] = softmax_j( z_k · x_j )` over the history is the target; the loss is the cross entropy between
it and the attention `a`, meaned over users and interests. The gradient flows through both.
"""

import torch
from torch import Tensor


def reattend_sum(
    *, interests_BKD: Tensor, history_vectors_BLD: Tensor, log_attention_BKL: Tensor, lengths_B: Tensor
) -> Tensor:
    """Give the sum over (user, interest) of the cross entropy, a scalar."""
    length = history_vectors_BLD.shape[1]
    padding_BL = torch.arange(length, device=lengths_B.device)[None, :] >= lengths_B[:, None]
    scores_BKL = interests_BKD @ history_vectors_BLD.transpose(1, 2)
    target_BKL = scores_BKL.masked_fill(padding_BL[:, None, :], -torch.inf).softmax(dim=2)
    return -(target_BKL * log_attention_BKL.masked_fill(padding_BL[:, None, :], 0)).sum()
