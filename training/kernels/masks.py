"""Which positions of padded histories are valid."""

import torch
from torch import Tensor


def valid_mask(lengths_B: Tensor, length: int) -> Tensor:
    """Give bool [B, length]: histories come first, padding behind them."""
    return torch.arange(length, device=lengths_B.device)[None, :] < lengths_B[:, None]
