"""The mixture loss: the chance of the target is the mean of the interests' softmaxes.

`L = -log( 1/K Σ_k e^(s_k) / Z_k )`, with s_k the target's score by interest k and Z_k the sum of e^score over
the target and the negatives by the same interest. An interest learns from a target in proportion to its
share of that chance, so each one has a gradient. Unlike the loss by served scores, which charges a split
of two equal interests in proportion to the square of their distance, this one charges the fourth power
only: interests come apart wherever the next event has several modes.

`evenness` adds the variance of `log Z_k` over the interests: serving compares their scores, so they must be
on one scale.

Legend: B examples, K interests, M negatives, D embedding, R rows (an example's interests one after another).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from re4.training.kernels.parallel import run_blocks, with_gradients
from re4.training.kernels.precision import Products
from re4.training.losses.accidental_hits import AccidentalHits

EVENNESS = 0.1
"""Default weight of the variance of `log Z_k`."""
# Scores of a block: two megabytes stay in the CPU's cache.
_BLOCK_SCORES = 500_000


def mixture_sum(
    *,
    interests_BKD: Tensor,
    target_vectors_BD: Tensor,
    negative_vectors_MD: Tensor,
    hits: AccidentalHits,
    evenness: float = EVENNESS,
    target_correction_B: Tensor | None = None,
    negative_correction_M: Tensor | None = None,
) -> Tensor:
    """Return the sum over the batch, a scalar; for the arguments see `sampled_softmax_sum`."""
    target_scores_BK = torch.einsum("bkd,bd->bk", interests_BKD, target_vectors_BD)
    if target_correction_B is not None:
        target_scores_BK = target_scores_BK - target_correction_B[:, None]
    inputs = (interests_BKD, target_scores_BK, negative_vectors_MD)
    examples = _Examples(
        interests_BKD=interests_BKD.detach().to(negative_vectors_MD.dtype).contiguous(),
        target_scores_BK=target_scores_BK.detach().to(negative_vectors_MD.dtype).contiguous(),
        vectors_MD=negative_vectors_MD.detach().contiguous(),
        corrections_M=negative_correction_M,
        hits=hits,
        evenness=evenness,
        interest_gradients_BKD=torch.empty_like(interests_BKD, dtype=negative_vectors_MD.dtype),
        target_gradients_BK=torch.empty_like(target_scores_BK, dtype=negative_vectors_MD.dtype),
        products=Products.on(negative_vectors_MD.device),
    )
    num_scores = len(negative_vectors_MD) * interests_BKD.shape[1]
    first, *others = run_blocks(
        partial(_Worker, examples),
        num_rows=len(interests_BKD),
        block_rows=max(1, _BLOCK_SCORES // num_scores),
        device=negative_vectors_MD.device,
    )
    for other in others:
        first.total += other.total
        first.vector_gradients_MD += other.vector_gradients_MD
    gradients = (
        examples.interest_gradients_BKD,
        examples.target_gradients_BK,
        first.vector_gradients_MD,
    )
    return with_gradients(first.total.to(negative_vectors_MD.dtype), inputs, gradients)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examples:
    """The inputs of the sum, and buffers for the gradients by interests and targets."""

    interests_BKD: Tensor
    target_scores_BK: Tensor
    vectors_MD: Tensor
    corrections_M: Tensor | None
    hits: AccidentalHits
    evenness: float
    interest_gradients_BKD: Tensor
    target_gradients_BK: Tensor
    products: Products


class _Worker:
    """One thread's buffer of scores, and its sums."""

    def __init__(self, examples: _Examples, block_rows: int) -> None:
        self.total = examples.vectors_MD.new_zeros(())
        self.vector_gradients_MD = torch.zeros_like(examples.vectors_MD)
        self._examples = examples
        num_rows = block_rows * examples.interests_BKD.shape[1]
        self._scores_RM = examples.vectors_MD.new_empty(num_rows, len(examples.vectors_MD))

    def __call__(self, block: slice) -> None:
        examples = self._examples
        interests_BKD, target_scores_BK = examples.interests_BKD[block], examples.target_scores_BK[block]
        size, num_interests, _ = interests_BKD.shape
        scores_RM = self._scores_RM[: size * num_interests]
        examples.products.put(interests_BKD.flatten(0, 1), examples.vectors_MD.T, out=scores_RM)
        if examples.corrections_M is not None:
            scores_RM -= examples.corrections_M
        scores_BKM = scores_RM.view(size, num_interests, -1)
        hit_examples_P, hit_negatives_P = examples.hits.of(block)
        scores_BKM[hit_examples_P, :, hit_negatives_P] = -torch.inf
        highest_BK = torch.maximum(scores_BKM.amax(dim=2), target_scores_BK)
        scores_BKM.sub_(highest_BK[:, :, None]).exp_()
        of_target_BK = (target_scores_BK - highest_BK).exp()
        sums_BK = scores_BKM.sum(dim=2) + of_target_BK
        log_sums_BK = sums_BK.log() + highest_BK
        chances_BK = target_scores_BK - log_sums_BK
        self.total += math.log(num_interests) * size - chances_BK.logsumexp(dim=1).sum()
        shares_BK = chances_BK.softmax(dim=1)
        # The slope of the loss by `log Z_k`.
        slopes_BK = shares_BK
        if examples.evenness:
            centred_BK = log_sums_BK - log_sums_BK.mean(dim=1, keepdim=True)
            self.total += examples.evenness * centred_BK.square().mean(dim=1).sum()
            slopes_BK = shares_BK + 2 * examples.evenness / num_interests * centred_BK
        factors_BK = slopes_BK / sums_BK
        examples.target_gradients_BK[block] = factors_BK * of_target_BK - shares_BK
        # The factor multiplies the side with fewer numbers.
        weighted_RD = (interests_BKD * factors_BK[:, :, None]).flatten(0, 1)
        examples.products.add(scores_RM.T, weighted_RD, to=self.vector_gradients_MD)
        gradients_BKD = examples.interest_gradients_BKD[block]
        examples.products.put(
            scores_RM, examples.vectors_MD, out=gradients_BKD.view(-1, gradients_BKD.shape[2])
        )
        gradients_BKD *= factors_BK[:, :, None]
