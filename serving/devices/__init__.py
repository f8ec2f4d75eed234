"""Where the encoder and the index run: on processors, or on one GPU."""

from serving.devices.cpu import OnCpu
from serving.devices.placement import Placement

__all__ = ["OnCpu", "Placement"]
