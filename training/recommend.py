"""The recommendation loss: the interest that fits the target best must score it above the negatives.

`k* = argmax_k z_k · e_y`, then softmax cross entropy of `z_k* · e_y` against the negatives that all
examples of the step share, by log-sum-exp, with the target masked out of its own negatives. Three options:

- served scores: a negative's score is `max_k z_k · e`, by the best of the user's interests, as serving ranks
  it, and not `z_k* · e` alone: otherwise an interest that the target did not choose may put anything first;
- soft choice, as MIND's label-aware attention: `z = Σ_k softmax_k(p z_k · e_y) z_k` in place of `z_k*`;
- hard negatives, as REMI's: the sum over negatives `Σ e^s` becomes `M Σ e^((1+β) s) / Σ e^(β s)`, what is
  expected of negatives drawn in proportion to `e^(β s)` (Xie et al., "Rethinking Multi-Interest Learning for
  Candidate Matching in Recommender Systems", RecSys 2023).
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from training.blockwise import blockwise_sum

# Scores of a block, a few MB: they stay in the processor's cache.
_BLOCK_SCORES = 640_000


def select_interest(interests_BKD: Tensor, targets_BD: Tensor) -> Tensor:
    """Give each example's training interest k*, int64 [B]; the lowest number wins a tie."""
    return torch.einsum("bkd,bd->bk", interests_BKD, targets_BD).argmax(dim=1)


def blend_interests(
    interests_BKD: Tensor, targets_BD: Tensor, *, sharpness: float, active_BK: Tensor | None = None
) -> Tensor:
    """Give each example's interests [B, D], weighted by `softmax(sharpness x score of the target)`."""
    logits_BK = sharpness * torch.einsum("bkd,bd->bk", interests_BKD, targets_BD)
    if active_BK is not None:
        logits_BK = logits_BK.masked_fill(~active_BK, -torch.inf)
    return torch.einsum("bk,bkd->bd", logits_BK.softmax(dim=1), interests_BKD)


def recommend_loss(
    *,
    interest_BD: Tensor,
    target_vectors_BD: Tensor,
    targets_B: Tensor,
    negative_vectors_MD: Tensor,
    negatives_M: Tensor,
    rivals_BKD: Tensor | None = None,
    hardness: float = 0.0,
    target_correction_B: Tensor | None = None,
    negative_correction_M: Tensor | None = None,
) -> Tensor:
    """Give the mean over the batch of the sampled (or full) softmax loss, a scalar.

    Args:
        interest_BD: each user's training interest.
        target_vectors_BD: vectors of the items to be ranked high.
        targets_B: their rows, int64.
        negative_vectors_MD: vectors of the negatives, shared by the batch.
        negatives_M: their rows, int64, repeats allowed.
        rivals_BKD: the interests whose best score a negative has; None for the training interest alone.
        hardness: beta of the hard negatives; 0 for none.
        target_correction_B: log of the expected count of each target in a draw, subtracted from its score.
        negative_correction_M: the same for each negative. Both or neither are given.
    """
    target_scores_B = (interest_BD * target_vectors_BD).sum(dim=1)
    if target_correction_B is not None:
        target_scores_B = target_scores_B - target_correction_B
    if negative_correction_M is None:
        negative_correction_M = negative_vectors_MD.new_zeros(len(negatives_M))
    rivals_BKD = interest_BD[:, None] if rivals_BKD is None else rivals_BKD
    block = max(1, _BLOCK_SCORES // (len(negatives_M) * rivals_BKD.shape[1]))
    block = block if targets_B.device.type == "cpu" else len(targets_B)
    total = blockwise_sum(
        partial(_sum_of_losses, hardness=hardness),
        rows=(rivals_BKD, target_scores_B, targets_B),
        shared=(negative_vectors_MD, negatives_M, negative_correction_M),
        block_rows=block,
    )
    return total / len(targets_B)


def _sum_of_losses(
    rivals_BKD: Tensor,
    target_scores_B: Tensor,
    targets_B: Tensor,
    negative_vectors_MD: Tensor,
    negatives_M: Tensor,
    negative_correction_M: Tensor,
    *,
    hardness: float,
) -> Tensor:
    num_rivals = rivals_BKD.shape[1]
    scores_RM = torch.addmm(negative_correction_M, rivals_BKD.flatten(0, 1), negative_vectors_MD.T, beta=-1)
    scores_BM = scores_RM
    if num_rivals > 1:
        scores_BM = scores_RM.view(-1, num_rivals, len(negatives_M)).max(dim=1).values
    scores_BM = scores_BM.masked_fill(negatives_M[None, :] == targets_B[:, None], -torch.inf)
    if hardness:
        # With the correction inside, an item drawn often is not taken for a hard one.
        hard_B = ((1 + hardness) * scores_BM).logsumexp(dim=1) - (hardness * scores_BM).logsumexp(dim=1)
        against_B = hard_B + math.log(len(negatives_M))
    else:
        against_B = scores_BM.logsumexp(dim=1)
    # -log(e^t / (e^t + e^n)) = log(1 + e^(n - t)), with n the log-sum-exp of the negatives.
    return F.softplus(against_B - target_scores_B).sum()
