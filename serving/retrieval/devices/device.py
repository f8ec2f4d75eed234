"""The devices on which a server can run. Imports nothing, so that the command's help is fast."""

from enum import StrEnum


class Device(StrEnum):
    """The device on which the encoder and the index run."""

    CPU = "cpu"
    CUDA = "cuda"
    """The first visible NVIDIA GPU."""
