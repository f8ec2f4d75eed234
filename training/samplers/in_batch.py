"""In-batch negatives: the targets of the step's other examples, corrected by log Q.

An item is a negative as often as it is chosen. The correction subtracts the log of its expected
count in a batch from its score; otherwise popular items would be ranked too low (Yi et al.,
"Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019).
"""

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives


class InBatch:
    """The batch's own targets."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        """Count an item without an event as half an event; the number of negatives is the batch size."""
        counts_N = item_counts_N.double().clamp_min(0.5)
        self._log_share_N = (counts_N / counts_N.sum()).log().float()

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Return the targets, with the correction for any row of the catalogue."""
        log_share_N = self._log_share_N = self._log_share_N.to(targets_B.device)
        log_size = torch.tensor(float(len(targets_B))).log().item()
        return Negatives(rows_M=targets_B, correction=lambda rows: log_share_N[rows] + log_size)
