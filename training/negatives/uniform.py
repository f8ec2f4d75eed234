"""Uniform negatives: every item is equally likely."""

import torch

from training.negatives.drawn import Negatives


class Uniform:
    """Draws rows uniformly, with replacement."""

    def __init__(self, num_items: int, num_negatives: int) -> None:
        self._num_items = num_items
        self._num_negatives = num_negatives

    def draw(self, generator: torch.Generator) -> Negatives:
        """Draw one step's negatives."""
        rows_M = torch.randint(
            self._num_items, (self._num_negatives,), generator=generator, device=generator.device
        )
        return Negatives(rows_M=rows_M, log_expected_count=None)
