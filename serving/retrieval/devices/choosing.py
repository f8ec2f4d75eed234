"""From the setting to the device. A GPU's libraries are imported only where a GPU is asked for."""

from re4.serving.retrieval.devices.cpu import OnCpu
from re4.serving.retrieval.devices.device import Device
from re4.serving.retrieval.devices.placement import Placement


def placement_on(device: Device) -> Placement:
    """The device that was asked for.

    Raises:
        ServerError: it is not there, or the libraries are builds without support for it.
    """
    if device is Device.CPU:
        return OnCpu()
    from re4.serving.retrieval.devices.cuda import OnCuda

    return OnCuda()
