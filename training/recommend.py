"""The recommendation loss: the interest that fits the target best must score it above the negatives.

`k* = argmax_k z_k · e_y`, then softmax cross entropy of `z_k* · e_y` against the negatives that all
examples of the step share, by log-sum-exp, with the target masked out of its own negatives.
"""

import torch
from torch import Tensor

from training.negatives.drawn import Negatives


def select_interest(interests_BKD: Tensor, targets_BD: Tensor) -> Tensor:
    """Give each example's training interest k*, int64 [B]; the lowest number wins a tie."""
    return torch.einsum("bkd,bd->bk", interests_BKD, targets_BD).argmax(dim=1)


def recommend_loss(
    *, interests_BKD: Tensor, targets_B: Tensor, item_vectors_ND: Tensor, negatives: Negatives
) -> Tensor:
    """Give the mean over the batch of the sampled (or full) softmax loss, a scalar.

    Args:
        interests_BKD: the users' interests.
        targets_B: int64, rows of the items to be ranked high.
        item_vectors_ND: the whole item table; only target and negative rows are read from it.
        negatives: shared by the batch, see `training.negatives`.
    """
    batch = torch.arange(len(targets_B), device=targets_B.device)
    target_vectors_BD = item_vectors_ND[targets_B]
    chosen_B = select_interest(interests_BKD.detach(), target_vectors_BD.detach())
    interest_BD = interests_BKD[batch, chosen_B]
    if negatives.rows_M is None:
        return torch.nn.functional.cross_entropy(interest_BD @ item_vectors_ND.T, targets_B)

    target_B = (interest_BD * target_vectors_BD).sum(dim=1)
    scores_BM = interest_BD @ item_vectors_ND[negatives.rows_M].T
    if negatives.log_expected_count_N is not None:
        target_B = target_B - negatives.log_expected_count_N[targets_B]
        scores_BM = scores_BM - negatives.log_expected_count_N[negatives.rows_M]
    scores_BM = scores_BM.masked_fill(negatives.rows_M[None, :] == targets_B[:, None], -torch.inf)
    return (torch.cat([target_B[:, None], scores_BM], dim=1).logsumexp(dim=1) - target_B).mean()
