"""What a sampler draws for one step, and the form that every sampler has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Item rows that one step's examples share as negatives."""

    rows_M: Tensor | None
    """Rows drawn, int64, repeats allowed; None stands for every row 0..N-1 in order."""

    log_expected_count: Callable[[Tensor], Tensor] | None
    """Gives the log of how often rows are expected in a draw (the logQ correction); None: all are alike.
    Only samplers that draw have one."""


class Sampler(Protocol):
    """Draws the negatives of one step."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None: ...

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw anew for a batch of targets; all randomness comes from the generator, on its device."""
        ...
