"""The flat index: every item compared, so every answer exact and nothing to tune."""

import faiss
import numpy as np
from numpy.typing import NDArray

from bundle.manifest import IndexInfo
from export.indexes.kind import BuiltIndex


def build(vectors_ND: NDArray[np.float32]) -> BuiltIndex:
    """Put the item vectors into a flat inner-product index."""
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    return BuiltIndex(index=index, info=IndexInfo(kind="flat", recall=1.0))
