"""Mixed negatives: the batch's own targets and `num_negatives` uniform ones.

In-batch negatives never contain items that nobody in the batch chose; uniform negatives contain
popular items rarely. The correction is that of the mixture: the log of both expected counts
together (Yang et al., "Mixed negative sampling for learning two-tower neural networks in
recommendations", WWW 2020).
"""

import torch
from torch import Tensor

from re4.training.samplers.in_batch import InBatch
from re4.training.samplers.sampler import Negatives
from re4.training.samplers.uniform import Uniform


class Mixed:
    """In-batch and uniform negatives together."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        self._in_batch = InBatch(num_negatives, item_counts_N)
        self._uniform = Uniform(num_negatives, item_counts_N)
        self._uniform_count = num_negatives / len(item_counts_N)

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw the uniform part; return both parts, with the correction of the mixture."""
        chosen, drawn = self._in_batch.draw(generator, targets_B), self._uniform.draw(generator, targets_B)
        assert chosen.rows_M is not None
        assert drawn.rows_M is not None
        log_in_batch = chosen.correction
        assert log_in_batch is not None

        def log_expected_count(rows: Tensor) -> Tensor:
            return (log_in_batch(rows).exp() + self._uniform_count).log()

        return Negatives(rows_M=torch.cat([chosen.rows_M, drawn.rows_M]), correction=log_expected_count)
