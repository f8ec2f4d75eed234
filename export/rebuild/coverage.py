"""Coverage: the share of the catalogue that is in the list of at least one held-out user.

The share depends on the number of requests and on the length of a list, so that only figures of equal
requests are compared.

Legend: Q requests, M candidates, N items.
"""

from dataclasses import asdict, dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

_NUM_TENTHS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of items in the list of at least one request."""

    catalogue: float
    """Of all items."""
    trained: float
    """Of the items with a trained vector."""
    by_popularity: tuple[float, ...]
    """Of each tenth of those, the most popular tenth first."""
    new: float | None
    """Of the items without a trained vector; None where there are none."""
    new_share: float
    """Share of all places that new items have."""
    num_requests: int

    @classmethod
    def of(cls, rows_QM: NDArray[np.int64], num_items: int, cold_rows: NDArray[np.int64]) -> Self:
        """Count the items in the lists of some requests.

        Args:
            rows_QM: The lists; -1 for a place without an item. Rows are in order of popularity.
            num_items: N.
            cold_rows: The items without a trained vector, ascending.
        """
        is_listed_N = np.zeros(num_items, np.bool_)
        listed = rows_QM[rows_QM >= 0]
        is_listed_N[listed] = True
        is_cold_N = np.zeros(num_items, np.bool_)
        is_cold_N[cold_rows] = True
        is_trained_listed = is_listed_N[~is_cold_N]
        tenths = np.array_split(is_trained_listed, min(_NUM_TENTHS, max(1, len(is_trained_listed))))
        return cls(
            catalogue=float(is_listed_N.mean()),
            trained=float(is_trained_listed.mean()) if len(is_trained_listed) else 0.0,
            by_popularity=tuple(float(each.mean()) if len(each) else 0.0 for each in tenths),
            new=float(is_listed_N[cold_rows].mean()) if len(cold_rows) else None,
            new_share=float(is_cold_N[listed].mean()) if len(listed) else 0.0,
            num_requests=len(rows_QM),
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Return the figures for a report, rounded."""
        return {
            name: [round(each, 4) for each in value]
            if isinstance(value, tuple)
            else value and round(value, 4)
            for name, value in asdict(self).items()
        }

    def __str__(self) -> str:
        """Return the figures in a sentence."""
        tenths = ", ".join(f"{each:.2f}" for each in self.by_popularity)
        new = (
            ""
            if self.new is None
            else f"; new items: {self.new:.2f}, with {self.new_share:.3f} of the places"
        )
        return (
            f"share of the catalogue in the list of any of {self.num_requests} held-out users: "
            f"{self.catalogue:.2f}; by tenth, the most popular first: {tenths}{new}"
        )
