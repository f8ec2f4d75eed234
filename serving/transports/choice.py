"""The choice of a transport: `native` only where it keeps every limit of the settings. Loads no gRPC."""

from re4.common.errors import UsageError
from re4.common.extras import require
from re4.serving.settings import ServerSettings, TransportName


def choose_transport(settings: ServerSettings) -> tuple[TransportName, str]:
    """Return the transport of a server, never `auto`, and the reason.

    Raises:
        UsageError: the settings demand `native`, and it is not installed or has no TLS for them.
    """
    wanted = settings.transport
    if wanted is TransportName.AUTO:
        # Every server has limits of messages and replies, and no release of pygrpc-native keeps them.
        return (
            TransportName.GRPCIO,
            "native bounds neither messages before they are unpacked nor unread replies",
        )
    if wanted is TransportName.NATIVE:
        if settings.access.certificate_files is not None:
            raise UsageError(f"{settings.described('transport')}: native has no TLS; use grpcio or auto")
        require(settings.described("transport"), "pygrpc_native")
    return wanted, "by the settings"
