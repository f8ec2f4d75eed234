"""Histories in the rows of another catalogue; items that it does not have are removed from them.

Legend: P histories, L history length, N items before.
"""

import numpy as np
from numpy.typing import NDArray

from re4.common.errors import ExportError


def remap_histories(
    rows_PL: NDArray[np.int64], lengths_P: NDArray[np.int64], new_rows_N: NDArray[np.integer], where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Move histories to new rows.

    Args:
        rows_PL: Newest first, padded at the end.
        lengths_P: Events of each.
        new_rows_N: The new row of every old one; -1 for an item that was removed.
        where: The origin of the histories, for the error message.

    Returns:
        The histories that are not empty then, in the same form.

    Raises:
        ExportError: none is left.
    """
    is_real_PL = np.arange(rows_PL.shape[1]) < lengths_P[:, None]
    moved_PL = np.where(is_real_PL, new_rows_N[rows_PL], -1).astype(np.int64)
    is_kept_PL = moved_PL >= 0
    # A stable sort: kept events move to the front in their order.
    order_PL = np.argsort(~is_kept_PL, axis=1, kind="stable")
    left_PL = np.take_along_axis(np.where(is_kept_PL, moved_PL, 0), order_PL, axis=1)
    left_P = is_kept_PL.sum(axis=1).astype(np.int64)
    is_usable_P = left_P > 0
    if not is_usable_P.any():
        raise ExportError(
            f"{where}: none of the items of its {len(lengths_P)} real histories is live: there is nothing "
            "to tune and check the version with. Do catalogue and vectors belong together?"
        )
    return left_PL[is_usable_P], left_P[is_usable_P]


def evenly_spaced(num: int, num_wanted: int) -> NDArray[np.int64]:
    """Return at most `num_wanted` places, evenly spaced over `num`."""
    return np.unique(np.linspace(0, num - 1, num_wanted).round().astype(np.int64))
