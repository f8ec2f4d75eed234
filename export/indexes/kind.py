"""What every index kind gives: the index, and what the manifest says about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from bundle.manifest import IndexInfo


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """A filled index."""

    index: faiss.Index
    """Holds row i of the item vectors under the id i; answers with raw inner products."""
    info: IndexInfo
    """Its kind, the search parameters to use, and the recall measured with them."""


IndexBuilder: TypeAlias = Callable[[NDArray[np.float32]], BuiltIndex]
"""Builds an index over item vectors, float32 [N, D], finite, C order."""
