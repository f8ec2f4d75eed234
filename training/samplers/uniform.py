"""Uniform negatives: every item is equally likely."""

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives


class Uniform:
    """Draws rows uniformly, with replacement."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        self._num_items = len(item_counts_N)
        self._num_negatives = num_negatives

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw one step's negatives."""
        rows_M = torch.randint(
            self._num_items, (self._num_negatives,), generator=generator, device=generator.device
        )
        return Negatives(rows_M=rows_M, correction=None)
