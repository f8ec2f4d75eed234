"""Accidental hits: a target that is among its own negatives is left out of their scores."""

from typing import NamedTuple

import torch
from torch import Tensor


class AccidentalHits(NamedTuple):
    """Places in scores of examples against negatives, int64 [P] each, in the order of examples."""

    examples_P: Tensor
    negatives_P: Tensor

    def of(self, block: slice) -> "AccidentalHits":
        """Return the places within a block of examples, counted from its start."""
        edges = torch.tensor([block.start, block.stop], device=self.examples_P.device)
        first, last = torch.searchsorted(self.examples_P, edges).tolist()
        return AccidentalHits(self.examples_P[first:last] - block.start, self.negatives_P[first:last])


def find_accidental_hits(targets_B: Tensor, negatives_M: Tensor) -> AccidentalHits:
    """Find the places of the targets' rows among the negatives' rows; int64, possibly with repeats."""
    sorted_M, order_M = negatives_M.sort()
    first_B = torch.searchsorted(sorted_M, targets_B)
    counts_B = torch.searchsorted(sorted_M, targets_B, right=True) - first_B
    examples_P = torch.repeat_interleave(counts_B)
    number_P = (
        torch.arange(len(examples_P), device=targets_B.device) - (counts_B.cumsum(0) - counts_B)[examples_P]
    )
    return AccidentalHits(examples_P, order_M[first_B[examples_P] + number_P])
