"""The order of item rows: most popular in train first.

Samplers that draw by popularity then need nothing but row numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from re4.training.data.dataset import Sequences
from re4.training.data.layout import SplitName


@dataclass(frozen=True, kw_only=True)
class OrderedItems:
    """Sequences with item rows in place of item codes."""

    sequences: Mapping[SplitName, Sequences]
    """By split."""
    code_of_row_N: npt.NDArray[np.int64]
    """The item code of every row."""
    num_never_in_train: int
    """Items without an event in train; they have the last rows."""


def order_items(sequences: Mapping[SplitName, Sequences], num_items: int) -> OrderedItems:
    """Order items by falling number of train events; items of equal number keep the order of their codes."""
    counts_N = np.bincount(sequences["train"].items_E, minlength=num_items)
    code_of_row_N = np.argsort(-counts_N, kind="stable")
    row_of_code_N = np.empty(num_items, dtype=np.int32)
    row_of_code_N[code_of_row_N] = np.arange(num_items, dtype=np.int32)
    return OrderedItems(
        sequences={
            split: replace(sequence, items_E=row_of_code_N[sequence.items_E])
            for split, sequence in sequences.items()
        },
        code_of_row_N=code_of_row_N,
        num_never_in_train=int((counts_N == 0).sum()),
    )
