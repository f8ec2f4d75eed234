"""The form of a sampler, and the negatives that it draws for a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Item rows that one step's examples share as negatives."""

    rows_M: Tensor | None
    """Rows, int64, possibly with repeats; None for every row 0..N-1 in order."""

    correction: Callable[[Tensor], Tensor] | None
    """What is subtracted from the scores of rows in the loss: the log of how often they are expected in a
    draw (the logQ correction), less the logit adjustment. None where it is equal for all rows."""


class Sampler(Protocol):
    """Draws the negatives of one step."""

    def __init__(self, num_negatives: int, item_counts_N: Tensor) -> None: ...

    def draw(self, generator: torch.Generator, targets_B: Tensor) -> Negatives:
        """Draw the negatives for a batch of targets, with the generator, on its device."""
        ...
