"""TLS of the native transport and of HTTP: contexts of Python's `ssl` for the newest certificates."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from re4.serving.auth.certificates import CertificateReloader, Certificates

HTTP2: Final = "h2"
HTTP1: Final = "http/1.1"
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: those that HTTP/2 allows (RFC 9113, appendix A). Those of TLS 1.3 need no choice."""


class TlsContexts:
    """The context of the newest certificates."""

    def __init__(self, reloader: CertificateReloader, protocol: str = HTTP2) -> None:
        """Make the first context.

        Args:
            reloader: Reads the certificates.
            protocol: The protocol that is spoken (ALPN).
        """
        self._reloader = reloader
        self._protocol = protocol
        self._certificates = reloader.current
        self._context = context_of(self._certificates, protocol)

    def newest(self) -> ssl.SSLContext:
        """Return the context for the next handshake."""
        self._reloader.refresh()
        certificates = self._reloader.current
        if certificates is not self._certificates:
            self._context, self._certificates = context_of(certificates, self._protocol), certificates
        return self._context


def context_of(certificates: Certificates, protocol: str = HTTP2) -> ssl.SSLContext:
    """Return a server's context; it needs a certificate of each client where there is a `client_ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols([protocol])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    with _in_memory(certificates.chain) as chain, _in_memory(certificates.key) as key:
        context.load_cert_chain(chain, key)
    if certificates.client_ca is not None:
        context.load_verify_locations(cadata=certificates.client_ca.decode("ascii", errors="replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory: `ssl` reads certificates from files only."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
