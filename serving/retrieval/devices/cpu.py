"""Processors: everything stays as it was loaded, and any thread may use it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.encoder import CPU_PROVIDERS, Encoder


class OnCpu:
    """See `Placement`."""

    name = "cpu"
    lane = None

    def encoder(self, load: Callable[[tuple[str, ...]], Encoder]) -> Encoder:
        """The encoder itself."""
        return load(CPU_PROVIDERS)

    def index(self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]) -> Any:
        """The index itself."""
        return index
