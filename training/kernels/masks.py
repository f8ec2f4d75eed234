"""Which positions of padded histories are valid."""

import torch
from torch import Tensor


def valid_mask(lengths_B: Tensor, length: int) -> Tensor:
    """Return bool [B, length]: true on the history, false on the padding behind it."""
    return torch.arange(length, device=lengths_B.device)[None, :] < lengths_B[:, None]
