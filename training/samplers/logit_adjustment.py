"""Logit adjustment: scores in the loss have the log of the item's popularity added; served scores have not.

The model then learns what is particular to a user, and popular items take fewer of the places in the lists.
Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
"""

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives, Sampler


class LogitAdjusted:
    """The draws of another sampler, with the adjustment in their correction."""

    def __init__(self, sampler: Sampler, weight: float, item_counts_N: Tensor) -> None:
        """Take the weight of the log popularity; an item without an event counts as half an event."""
        self._sampler = sampler
        self._adjustment_N = weight * item_counts_N.float().clamp_min(0.5).log()

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw the negatives of one step."""
        drawn = self._sampler.draw(generator, targets_B)
        adjustment_N = self._adjustment_N = self._adjustment_N.to(targets_B.device)
        log_q = drawn.correction

        def correction(rows: Tensor) -> Tensor:
            return -adjustment_N[rows] if log_q is None else log_q(rows) - adjustment_N[rows]

        return Negatives(rows_M=drawn.rows_M, correction=correction)
