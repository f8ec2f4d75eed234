"""From the setting to the device. A GPU's libraries are imported only where a GPU is asked for."""

from serving.devices.cpu import OnCpu
from serving.devices.placement import Placement
from serving.settings import Device


def placement_on(device: Device) -> Placement:
    """The device that was asked for.

    Raises:
        ServerError: it is not there, or the libraries are builds without support for it.
    """
    if device is Device.CPU:
        return OnCpu()
    from serving.devices.cuda import OnCuda

    return OnCuda()
