"""What the server must know about a kind of index. Knows nothing about how one is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """One kind of index on the allow-list."""

    name: str
    """As the manifest's `index.kind` says it."""
    signatures: frozenset[bytes]
    """The four bytes that a file of this kind may begin with."""
    faiss_types: frozenset[str]
    """Names of the FAISS classes that such a file may turn into."""
    min_golden_recall: float
    """The share of the golden queries' exact candidates that an index of this kind must find, 0 to 1."""
    search_parameters: Callable[[Mapping[str, int | float]], Any]
    """Makes the per-call FAISS search parameters (None for none) of the manifest's; KeyError or ValueError
    where they are not this kind's. Never set them on the index itself: that is shared state."""
