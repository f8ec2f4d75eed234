"""The choice of a transport: `native` where it is safe and has what the settings ask for. Loads no gRPC."""

from importlib.util import find_spec
from typing import Final

from re4.common.errors import UsageError
from re4.serving.host.addresses import parse_address
from re4.serving.settings import ServerSettings, TransportName

_INSTALL: Final = "pip install pygrpc-native==0.5.0"


def choose_transport(settings: ServerSettings) -> tuple[TransportName, str]:
    """Return the transport of a server, never `auto`, and the reason.

    Raises:
        UsageError: the settings demand `native`, and it is not installed or has no TLS for them.
    """
    wanted = settings.transport
    if wanted is TransportName.GRPCIO:
        return wanted, "by the settings"
    problem = None
    if settings.access.certificate_files is not None:
        problem = "native has no TLS"
    elif find_spec("pygrpc_native") is None:
        problem = f"native is not installed ({_INSTALL})"
    if wanted is TransportName.NATIVE:
        if problem is not None:
            raise UsageError(f"{settings.described('transport')}: {problem}; use grpcio or auto")
        return wanted, "by the settings"
    if problem is None and not parse_address(settings.address).is_loopback:
        problem = "native does not bound the memory of messages from other machines"
    if problem is not None:
        return TransportName.GRPCIO, problem
    return TransportName.NATIVE, "calls come from this machine, without TLS"
