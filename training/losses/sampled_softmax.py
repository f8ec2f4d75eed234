"""The recommendation loss: the interest that fits the target best should score it above the
negatives.

`k* = argmax_k z_k · e_y`, then the softmax cross entropy of `z_k* · e_y` against the negatives,
which all examples of a step share, with accidental hits left out. Three options:

- served scores: the score of a negative is `max_k z_k · e`, as in serving, instead of `z_k* · e`.
  Otherwise the interests that the target did not choose are not held back from ranking wrong items
  first.
- soft choice, as MIND's label-aware attention: `z = Σ_k softmax_k(p z_k · e_y) z_k` in place of
  `z_k*`.
- hard negatives, as REMI's: the sum over negatives `Σ e^s` becomes `M Σ e^((1+β) s) / Σ e^(β s)`,
  the expected sum for negatives drawn in proportion to `e^(β s)` (Xie et al., "Rethinking
  Multi-Interest Learning for Candidate Matching in Recommender Systems", RecSys 2023).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from re4.training.kernels.parallel import with_gradients
from re4.training.losses.accidental_hits import AccidentalHits
from re4.training.losses.fused_softmax import fused_softmax_sum


def select_interest(interests_BKD: Tensor, targets_BD: Tensor) -> Tensor:
    """Return the number k* of each example's training interest, int64 [B]; the lowest one wins a tie."""
    return torch.einsum("bkd,bd->bk", interests_BKD, targets_BD).argmax(dim=1)


def blend_interests(
    interests_BKD: Tensor, targets_BD: Tensor, *, sharpness: float, active_BK: Tensor | None = None
) -> Tensor:
    """Return each example's interests [B, D], weighted by `softmax(sharpness x score of the target)`."""
    logits_BK = sharpness * torch.einsum("bkd,bd->bk", interests_BKD, targets_BD)
    if active_BK is not None:
        logits_BK = logits_BK.masked_fill(~active_BK, -torch.inf)
    return torch.einsum("bk,bkd->bd", logits_BK.softmax(dim=1), interests_BKD)


def binary_cross_entropy_sum(
    *, interest_BD: Tensor, target_vectors_BD: Tensor, negative_vectors_MD: Tensor, hits: AccidentalHits
) -> Tensor:
    """Return the sum of SASRec's loss: `-log σ(target) - E log σ(-negative)`, a scalar.

    SASRec draws one negative for each target; this is the expectation over all negatives of the step. For
    the arguments see `sampled_softmax_sum`.
    """
    target_scores_B = (interest_BD * target_vectors_BD).sum(dim=1)
    negative_BM = F.softplus(interest_BD @ negative_vectors_MD.T)
    kept_BM = torch.ones_like(negative_BM)
    kept_BM[hits] = 0
    mean_B = (negative_BM * kept_BM).sum(dim=1) / kept_BM.sum(dim=1).clamp_min(1)
    return (F.softplus(-target_scores_B) + mean_B).sum()


def sampled_softmax_sum(
    *,
    interest_BD: Tensor,
    target_vectors_BD: Tensor,
    negative_vectors_MD: Tensor,
    hits: AccidentalHits,
    rivals_BKD: Tensor | None = None,
    hardness: float = 0.0,
    target_correction_B: Tensor | None = None,
    negative_correction_M: Tensor | None = None,
) -> Tensor:
    """Return the sum over the batch of the sampled (or full) softmax loss, a scalar.

    Args:
        interest_BD: each user's training interest.
        target_vectors_BD: vectors of the items to be ranked high.
        negative_vectors_MD: vectors of the negatives, shared by the batch.
        hits: where a target is among its own negatives.
        rivals_BKD: the interests whose best score a negative has; None for the training interest
            alone.
        hardness: beta of the hard negatives; 0 for none.
        target_correction_B: log of the expected count of each target in a draw, subtracted from its
            score.
        negative_correction_M: the same for each negative. Both or neither are given.
    """
    target_scores_B = (interest_BD * target_vectors_BD).sum(dim=1)
    if target_correction_B is not None:
        target_scores_B = target_scores_B - target_correction_B
    rivals_BKD = interest_BD[:, None] if rivals_BKD is None else rivals_BKD
    inputs = (rivals_BKD, target_scores_B, negative_vectors_MD)
    total, *gradients = fused_softmax_sum(
        rivals_BKD=rivals_BKD.detach(),
        target_scores_B=target_scores_B.detach(),
        vectors_MD=negative_vectors_MD.detach(),
        corrections_M=negative_correction_M,
        hits=hits,
        hardness=hardness,
    )
    return with_gradients(total, inputs, tuple(gradients))
