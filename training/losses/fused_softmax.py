"""The sampled softmax loss and its gradients in one pass over blocks of examples.

The loss is the sum over examples of `softplus(n - t)`, with t the target's score and n the
log-sum-exp of the negatives' scores, or its variant for hard negatives (see `sampled_softmax`). The
score of a negative is the best of the example's rivals, the interests that compete for it. A worker
thread takes one block of examples after the other, in buffers that stay in its core's cache.

On a CPU, without hard negatives, a C kernel works on a block (`kernels/fused_softmax.c`); otherwise
PyTorch's operations do.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from re4.training.kernels import MAX_LANES, call_kernel, kernel_for
from re4.training.kernels.parallel import BlockWorker, run_blocks
from re4.training.kernels.precision import Products
from re4.training.losses.accidental_hits import AccidentalHits

# Scores of a block: four megabytes stay in the CPU's cache.
_BLOCK_SCORES = 1_000_000
# The kernel works on small groups of a block.
_NATIVE_BLOCK_ROWS = 256
# The most numbers of an example's rivals that the kernel accepts.
_NATIVE_NUMBERS = 4096
# In place of minus infinity, where that would be subtracted from itself.
_LOWEST = -1e30
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The inputs of the sum, and buffers for the gradients by rivals and targets."""

    rivals_BKD: Tensor
    target_scores_B: Tensor
    vectors_MD: Tensor
    corrections_M: Tensor | None
    hits: AccidentalHits
    hardness: float
    rival_gradients_BKD: Tensor
    target_gradients_B: Tensor
    products: Products


def fused_softmax_sum(
    *,
    rivals_BKD: Tensor,
    target_scores_B: Tensor,
    vectors_MD: Tensor,
    corrections_M: Tensor | None,
    hits: AccidentalHits,
    hardness: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum, a scalar, and its gradients by rivals, target scores and vectors.

    Autograd tracks nothing; see `sampled_softmax.sampled_softmax_sum` for the arguments.
    """
    examples = Examples(
        rivals_BKD=rivals_BKD.to(vectors_MD.dtype).contiguous(),
        target_scores_B=target_scores_B.to(vectors_MD.dtype).contiguous(),
        vectors_MD=vectors_MD.contiguous(),
        corrections_M=None if corrections_M is None else corrections_M.contiguous(),
        hits=hits,
        hardness=hardness,
        rival_gradients_BKD=vectors_MD.new_empty(rivals_BKD.shape),
        target_gradients_B=vectors_MD.new_empty(target_scores_B.shape),
        products=Products.on(vectors_MD.device),
    )
    new_worker, block_rows = _worker_for(examples)
    workers = run_blocks(
        new_worker, num_rows=len(rivals_BKD), block_rows=block_rows, device=vectors_MD.device
    )
    for worker in workers[1:]:
        workers[0].total += worker.total
        workers[0].vector_gradients_MD += worker.vector_gradients_MD
    return (
        workers[0].total.to(vectors_MD.dtype),
        examples.rival_gradients_BKD,
        examples.target_gradients_B,
        workers[0].vector_gradients_MD,
    )


class _Worker(BlockWorker, Protocol):
    total: Tensor
    vector_gradients_MD: Tensor


def _worker_for(examples: Examples) -> tuple[Callable[[int], _Worker], int]:
    """Return the worker for a block, by the kernel where there is one, and the block's number of rows."""
    num_negatives, (_, num_rivals, dim) = len(examples.vectors_MD), examples.rivals_BKD.shape
    if not examples.hardness and num_rivals * dim <= _NATIVE_NUMBERS:
        compiled = kernel_for(examples.vectors_MD, "fused_softmax.c", {"DIM": dim}, RIVALS=num_rivals)
        if compiled is not None:
            return partial(_NativeWorker, examples, compiled), _NATIVE_BLOCK_ROWS
    return partial(_TorchWorker, examples), max(1, _BLOCK_SCORES // (num_negatives * num_rivals))


class _NativeWorker:
    def __init__(self, examples: Examples, compiled: ctypes.CDLL, block_rows: int) -> None:
        num_negatives = len(examples.vectors_MD)
        self.total = torch.zeros((), dtype=torch.float64)
        self.vector_gradients_MD = torch.zeros_like(examples.vectors_MD)
        self._examples, self._work_block = examples, compiled.fused_softmax_block
        self._scores_MX = torch.empty(num_negatives, MAX_LANES)
        self._winners_MX = torch.empty(num_negatives, MAX_LANES, dtype=torch.uint8)

    def __call__(self, block: slice) -> None:
        examples = self._examples
        hit_examples_P, hit_negatives_P = examples.hits.of(block)
        call_kernel(
            self._work_block,
            block.stop - block.start,
            len(examples.vectors_MD),
            len(hit_examples_P),
            examples.rivals_BKD[block],
            examples.target_scores_B[block],
            examples.vectors_MD,
            examples.corrections_M,
            hit_examples_P,
            hit_negatives_P,
            self._scores_MX,
            self._winners_MX,
            self.total,
            examples.rival_gradients_BKD[block],
            examples.target_gradients_B[block],
            self.vector_gradients_MD,
        )


class _TorchWorker:
    def __init__(self, examples: Examples, block_rows: int) -> None:
        vectors_MD, num_rivals = examples.vectors_MD, examples.rivals_BKD.shape[1]
        self.total = vectors_MD.new_zeros(())
        self.vector_gradients_MD = torch.zeros_like(vectors_MD)
        self._examples = examples
        self._scores_RM = vectors_MD.new_empty(block_rows * num_rivals, len(vectors_MD))
        self._best_BM = (
            vectors_MD.new_empty(block_rows, len(vectors_MD)) if num_rivals > 1 else self._scores_RM
        )

    def __call__(self, block: slice) -> None:
        examples, num_rows = self._examples, block.stop - block.start
        rivals_BKD, targets_B = examples.rivals_BKD[block], examples.target_scores_B[block]
        num_rivals = rivals_BKD.shape[1]
        scores_RM, best_BM = self._scores_RM[: num_rows * num_rivals], self._best_BM[:num_rows]
        examples.products.put(rivals_BKD.flatten(0, 1), examples.vectors_MD.T, out=scores_RM)
        scores_BKM = scores_RM.view(num_rows, num_rivals, -1)
        if num_rivals > 1:
            torch.amax(scores_BKM, dim=1, out=best_BM)
            scores_BKM.eq_(best_BM[:, None])
        if examples.corrections_M is not None:
            best_BM -= examples.corrections_M
        best_BM[examples.hits.of(block)] = -torch.inf
        negatives_B, factor_B = self._softmax(best_BM)
        self.total += F.softplus(negatives_B - targets_B).sum()
        slope_B = torch.sigmoid(negatives_B - targets_B)
        torch.neg(slope_B, out=examples.target_gradients_B[block])
        if num_rivals > 1:
            for rival in range(num_rivals):  # of rivals that tie, the first one has the gradient
                best_BM -= scores_BKM[:, rival].mul_(best_BM)
        # The factor multiplies the side with fewer numbers.
        factor_B11 = (factor_B * slope_B)[:, None, None]
        examples.products.add(
            scores_RM.T, (rivals_BKD * factor_B11).flatten(0, 1), to=self.vector_gradients_MD
        )
        gradients_BKD = examples.rival_gradients_BKD[block]
        examples.products.put(
            scores_RM, examples.vectors_MD, out=gradients_BKD.view(-1, gradients_BKD.shape[2])
        )
        gradients_BKD *= factor_B11

    def _softmax(self, scores_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Turn scores into their gradient but for a factor; return n [B] and the factor."""
        hardness = self._examples.hardness
        highest_B1 = scores_BM.amax(dim=1, keepdim=True).clamp_min_(_LOWEST)
        scores_BM -= highest_B1
        if not hardness:
            sums_B = scores_BM.exp_().sum(dim=1)
            return sums_B.log() + highest_B1[:, 0], sums_B.clamp_min(_TINY).reciprocal()
        harder_BM, hard_BM = ((1 + hardness) * scores_BM).exp_(), (hardness * scores_BM).exp_()
        harder_B, hard_B = harder_BM.sum(dim=1), hard_BM.sum(dim=1)
        torch.sub(
            harder_BM.mul_(((1 + hardness) / harder_B)[:, None]),
            hard_BM.mul_((hardness / hard_B)[:, None]),
            out=scores_BM,
        )
        negatives_B = harder_B.log() - hard_B.log() + highest_B1[:, 0] + math.log(scores_BM.shape[1])
        return negatives_B, torch.ones_like(negatives_B)
