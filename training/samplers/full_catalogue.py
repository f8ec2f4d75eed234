"""The whole catalogue as negatives: the exact softmax, affordable for small catalogues."""

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives


class FullCatalogue:
    """Every item in every step; nothing is drawn."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        """Accept the arguments of a sampler; none is needed."""

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Return all rows."""
        return Negatives(rows_M=None, correction=None)
