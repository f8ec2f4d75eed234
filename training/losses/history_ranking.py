"""History ranking: the target should be ranked above the items of the user's history.

The loss is the cross entropy of the target's score against the served scores of the history's
items, `max_k z_k · x_j`, as the only negatives. The items that an interest is made from have high
scores, and displace new items from lists that keep the history.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from re4.training.kernels.masks import valid_mask


def history_ranking_sum(
    *,
    interest_BD: Tensor,
    target_vectors_BD: Tensor,
    targets_B: Tensor,
    interests_BKD: Tensor,
    history_vectors_BLD: Tensor,
    history_BL: Tensor,
    lengths_B: Tensor,
) -> Tensor:
    """Return the sum over users, a scalar; a target within the history is not its own negative.

    Args:
        interest_BD: each user's training interest.
        target_vectors_BD: vectors of the items to be ranked high.
        targets_B: their rows.
        interests_BKD: all interests.
        history_vectors_BLD: vectors of the histories.
        history_BL: their rows.
        lengths_B: their valid positions.
    """
    is_rival_BL = valid_mask(lengths_B, history_BL.shape[1]) & (history_BL != targets_B[:, None])
    scores_BL = (interests_BKD @ history_vectors_BLD.transpose(1, 2)).amax(dim=1)
    history_B = scores_BL.masked_fill(~is_rival_BL, -torch.inf).logsumexp(dim=1)
    return F.softplus(history_B - (interest_BD * target_vectors_BD).sum(dim=1)).sum()
