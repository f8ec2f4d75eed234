"""What the servers of a version will search its index on, as far as that decides how it is built.

A version for GPUs serves on processors too, slower than one that is made for them. Not verified on a GPU: see
docs/architecture.md.
"""

from enum import StrEnum
from typing import Any, Final

from re4.common.errors import UsageError

_ON_CUDA: Final = frozenset(
    {
        "IndexFlat",
        "IndexFlatIP",
        "IndexIVFFlat",
        "IndexIVFScalarQuantizer",
        "IndexIVFPQ",
        "IndexHNSWFlat",
        "IndexHNSWCagra",
    }
)


class Device(StrEnum):
    """A kind of machine to search on."""

    CPU = "cpu"
    CUDA = "cuda"


def check_device(factory: str, base: Any, device: Device) -> None:
    """Refuse an index that the device cannot hold.

    Args:
        factory: What it is made of.
        base: The index, which may be empty.
        device: What servers will have.

    Raises:
        UsageError: names the index and what to choose.
    """
    name = type(base).__name__
    if device is Device.CUDA and name not in _ON_CUDA:
        raise UsageError(
            f"--index {factory}: FAISS has no GPU index for {name}; with --device cuda choose flat, ivf, "
            "ivf-sq8 or cagra, or leave --device cuda out"
        )
