"""The interface of device backends, the CPU backend, and the choice of the backend by the setting.

Legend: B batch, L history length, K interests, D embedding.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.devices.device import Device
from re4.serving.retrieval.encoder import CPU_PROVIDERS, Encoder


class SupportsEncode(Protocol):
    """An encoder as the pipeline uses it."""

    def encode(
        self, history_vectors_BLD: NDArray[np.float32], lengths_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return `interests_BKD` and `attention_BKL` of a batch."""
        ...

    def warm(self) -> None:
        """Run every batch size once."""
        ...


class DeviceBackend(Protocol):
    """Puts the encoder and the index of a version on a device."""

    name: str
    """For logs, and for `Info`."""

    @property
    def worker_thread(self) -> ThreadPoolExecutor | None:
        """The only thread that may use the device; None where any thread may."""

    def encoder(self, load: Callable[[tuple[str, ...]], Encoder]) -> SupportsEncode:
        """Return an encoder on the device; `load` takes the ONNX Runtime providers."""

    def index(self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]) -> Any:
        """Return a FAISS index on the device.

        Args:
            index: As it was loaded and checked.
            vectors_ND: The indexed vectors.
            query_counts: Numbers of queries in a search for which to warm up, ascending.

        Returns:
            An object with `ntotal` and `search(queries, k, params=…)`.

        Raises:
            BundleMismatchError: the device has no such index.
        """


class CpuBackend:
    """The CPU: encoder and index stay as they were loaded, and any thread may use them."""

    name = "cpu"
    worker_thread = None

    def encoder(self, load: Callable[[tuple[str, ...]], Encoder]) -> Encoder:
        """Return the encoder itself."""
        return load(CPU_PROVIDERS)

    def index(self, index: Any, *, vectors_ND: NDArray[np.float32], query_counts: tuple[int, ...]) -> Any:
        """Return the index itself."""
        return index


def open_backend(device: Device) -> DeviceBackend:
    """Return the backend of a device. A GPU's libraries are imported only for a GPU.

    Raises:
        ServerError: there is no such device, or the libraries are builds without support for it.
    """
    if device is Device.CPU:
        return CpuBackend()
    from re4.serving.retrieval.devices.cuda import CudaBackend

    return CudaBackend()
