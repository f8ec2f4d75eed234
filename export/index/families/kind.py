"""What export must know about a family of indexes. A family is one way of searching: one thing to tune."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Settings: TypeAlias = Mapping[str, int | float]
"""Search parameters as the manifest has them: `nprobe`, `ef_search`, `k_factor`, `pool_factor`."""


@dataclass(frozen=True, kw_only=True)
class IndexFamily:
    """FAISS classes that are searched alike."""

    name: str
    """The manifest's `index.kind`."""
    faiss_types: frozenset[str]
    """FAISS classes of the family, those that servers load."""
    is_exact: bool
    """Whether a search finds the best items, with true scores. What others find is pooled and scored by the
    vectors (`re4.bundle.rescoring`)."""
    settings: Callable[[Any, int], Sequence[Settings]]
    """What to try for an index and a number of results, cheapest first."""
    parameters: Callable[[Settings], Any]
    """The per-call FAISS search parameters of a setting; None where there are none."""
    advice: str
    """What would help an index of this family that cannot reach its recall."""
