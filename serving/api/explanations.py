"""Explanations of candidates: the history items to which each interest attends most.

The contract calls them reasons.

Legend: K interests, L history length, I different items in it, R reasons of each interest.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TopAttended(NamedTuple):
    """The history items to which each interest attends most, by falling attention."""

    rows_KR: NDArray[np.int64]
    weights_KR: NDArray[np.float32]


def top_attended(
    attention_KL: NDArray[np.float32], history_rows_L: NDArray[np.int64], num_reasons: int
) -> TopAttended:
    """Return the most attended items; among equally attended ones the newer are first.

    The weights of an item that occurs more than once in the history are added.

    Args:
        attention_KL: Over the history, newest first.
        history_rows_L: Item rows, newest first.
        num_reasons: R; fewer are returned where the history has fewer items.
    """
    rows_I, first_I, items_L = np.unique(history_rows_L, return_index=True, return_inverse=True)
    weights_KI = np.zeros((len(attention_KL), len(rows_I)), np.float32)
    np.add.at(weights_KI.T, items_L, attention_KL.T)
    newest_first = np.argsort(first_I)
    weights_KI, rows_I = weights_KI[:, newest_first], rows_I[newest_first]
    order_KR = np.argsort(-weights_KI, axis=1, kind="stable")[:, :num_reasons]
    return TopAttended(rows_I[order_KR], np.take_along_axis(weights_KI, order_KR, 1))
