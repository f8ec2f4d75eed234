"""In-batch negatives: the targets of the step's other examples, corrected by log Q.

An item is drawn as often as it is chosen, so the correction subtracts the log of its expected count in a
batch from every score; without it popular items would be pushed down (Yi et al., "Sampling-bias-corrected
neural modeling for large corpus item recommendations", RecSys 2019).
"""

import torch
from torch import Tensor

from re4.training.samplers.sampler import Negatives


class InBatch:
    """Takes the batch's own targets."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None:
        """The batch says how many there are; items without an event count as one with half an event."""
        counts_N = item_counts_N.double().clamp_min(0.5)
        self._log_share_N = (counts_N / counts_N.sum()).log().float()

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Give the targets, with the correction for any row of the catalogue."""
        log_share_N = self._log_share_N = self._log_share_N.to(targets_B.device)
        log_size = torch.tensor(float(len(targets_B))).log().item()
        return Negatives(rows_M=targets_B, log_expected_count=lambda rows: log_share_N[rows] + log_size)
