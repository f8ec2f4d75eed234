"""Popularity negatives: log-uniform over the popularity rank, corrected by log Q.

The rows of a prepared data set are in order of popularity, so row r is drawn with probability
`log((r+2)/(r+1)) / log(N+1)`, which needs no table. The correction subtracts the log of the
expected count from every score, so that the loss still estimates the softmax over the whole
catalogue (Bengio and Senécal, 2008).
"""

import math

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives


class LogUniform:
    """Draws rows log-uniformly over the popularity rank, with replacement."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        self._num_items = len(item_counts_N)
        self._num_negatives = num_negatives

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw one step's negatives, with the correction for any row of the catalogue."""
        uniform_M = torch.rand(
            self._num_negatives, generator=generator, device=generator.device, dtype=torch.float64
        )
        rows_M = (uniform_M * math.log(self._num_items + 1)).exp().long() - 1
        return Negatives(rows_M=rows_M.clamp_(0, self._num_items - 1), correction=self._log_expected_count)

    def _log_expected_count(self, rows: Tensor) -> Tensor:
        probability = torch.log1p(1 / (rows.double() + 1)) / math.log(self._num_items + 1)
        return (probability * self._num_negatives).log().float()
