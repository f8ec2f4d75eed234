"""What a device must be able to do: hold an encoder and an index, and answer from them.

Legend: B batch, L history length, K interests, D embedding.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from re4.serving.retrieval.encoder import Encoder


class Encodes(Protocol):
    """What the pipeline asks of an encoder."""

    def encode(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`interests_BKD` and `attention_BKL` of a batch."""
        ...

    def warm(self) -> None:
        """Run every batch size once."""
        ...


class Placement(Protocol):
    """Puts the parts of a version on a device."""

    name: str
    """For people, and for `Info`."""

    @property
    def lane(self) -> ThreadPoolExecutor | None:
        """The one thread that may use the device; None where any thread may."""

    def encoder(self, load: Callable[[tuple[str, ...]], "Encoder"]) -> Encodes:
        """An encoder on the device; `load` loads it with the ONNX Runtime providers that it is given."""

    def index(self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]) -> Any:
        """A FAISS index on the device.

        Args:
            index: As it was loaded and checked.
            vectors_ND: What is in it.
            query_counts: Numbers of query rows to be ready for, ascending.

        Returns:
            Something with `ntotal` and `search(queries, k, params=…)`.

        Raises:
            BundleMismatchError: the device cannot hold such an index.
        """
