"""The devices that a server can run on. Imports nothing, so that the command's help is quick."""

from enum import StrEnum


class Device(StrEnum):
    """Where the encoder and the index run."""

    CPU = "cpu"
    CUDA = "cuda"
    """The first NVIDIA GPU that is visible."""
