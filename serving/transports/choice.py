"""The choice of a transport. Loads no gRPC before one is opened."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from re4.common.extras import require
from re4.serving.settings import Limits, ServerSettings, TransportName

if TYPE_CHECKING:
    from re4.serving.auth.certificates import CertificateReloader
    from re4.serving.transports.transport import Method, Transport

_PACKAGE: Final = "ngh2"


def choose_transport(settings: ServerSettings) -> tuple[TransportName, str]:
    """Return the transport of a server, never `auto`, and the reason.

    Raises:
        UsageError: the settings demand `native`, and its package is not installed.
    """
    wanted = settings.transport
    if wanted is TransportName.AUTO:
        if sys.platform != "linux":
            return TransportName.GRPCIO, "native, faster and safer from floods of calls, runs on Linux only"
        if find_spec(_PACKAGE) is None:
            reason = f"the package {_PACKAGE} of native, faster and safer from floods, is not installed"
            return TransportName.GRPCIO, reason
        return TransportName.NATIVE, "it supports all settings, is faster, and safer from floods of calls"
    if wanted is TransportName.NATIVE:
        require(settings.described("transport"), _PACKAGE)
    return wanted, "by the settings"


def open_transport(
    name: TransportName,
    methods: "Sequence[Method]",
    limits: Limits,
    certificates: "CertificateReloader | None" = None,
) -> "Transport":
    """Assemble a server of methods.

    Args:
        name: As `choose_transport` returns it.
        methods: What it answers.
        limits: Of messages and connections.
        certificates: For TLS; None for none.
    """
    if name is TransportName.GRPCIO:
        from re4.serving.transports.grpcio_transport import GrpcioTransport

        return GrpcioTransport(methods, limits, certificates=certificates)
    from re4.serving.transports.native_transport import NativeTransport

    return NativeTransport(methods, limits, certificates=certificates)
