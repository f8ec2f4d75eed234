"""TLS certificates from files: read, checked, and read again when they change, without dropping a call.

Unusable files are reported in plain words at start, not by a library at the first handshake. While the server
runs, unusable files change nothing: the last good ones stay in use.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from re4.common.errors import SecurityError
from re4.serving.host.file_poller import FilePoller, file_mark, read_followed

_EXPIRES_SOON: Final = timedelta(days=14)
"""A certificate with less time left is logged as a warning."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """Paths of a server's certificates."""

    certificate: Path
    """PEM: the server's certificate first, then those between it and its authority."""
    key: Path
    """PEM: its private key, without a passphrase."""
    client_ca: Path | None
    """PEM: the authorities of client certificates; None where clients need no certificate."""

    def marks(self) -> tuple[Hashable, ...]:
        """Return a value that changes whenever a file does."""
        return tuple(file_mark(path) for path in (self.certificate, self.key, self.client_ca) if path)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """The content of checked files."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    not_after: datetime
    """When the server's certificate ends."""


def read_certificates(files: CertificateFiles, *, now: datetime | None = None) -> Certificates:
    """Read and check certificates.

    Args:
        files: Their paths.
        now: The moment at which they must be valid; None for the present.

    Raises:
        SecurityError: a file cannot be read or parsed, the certificate is not valid now, or the key belongs
            to another one.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    now = now or datetime.now(UTC)
    chain, key = _read(files.certificate, "certificate"), _read(files.key, "key")
    client_ca = None if files.client_ca is None else _read(files.client_ca, "certificate of authorities")
    leaf = _first_of(files.certificate, chain)
    if files.client_ca is not None:
        _first_of(files.client_ca, client_ca or b"")
    private = _parsed(
        files.key, "a PEM private key without a passphrase", lambda: load_pem_private_key(key, None)
    )
    if now >= leaf.not_valid_after_utc:
        raise SecurityError(
            f"certificate {files.certificate} ended on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, no "
            "client would take it; put a renewed one there"
        )
    if now < leaf.not_valid_before_utc:
        raise SecurityError(
            f"certificate {files.certificate} begins on {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC "
            "only; put one there that is valid now, or look at this machine's clock"
        )
    public_key = _parsed(files.certificate, "a public key of a known kind", leaf.public_key)
    if private.public_key() != public_key:
        raise SecurityError(
            f"key {files.key} does not belong to certificate {files.certificate}; give the key that the "
            "certificate was made for"
        )
    return Certificates(chain=chain, key=key, client_ca=client_ca, not_after=leaf.not_valid_after_utc)


def certificate_end(path: Path) -> datetime:
    """Return when the certificate in a file ends, or has ended.

    Raises:
        SecurityError: the file cannot be read or parsed.
    """
    end: datetime = _first_of(path, _read(path, "certificate")).not_valid_after_utc
    return end


class CertificateReloader:
    """The newest usable certificates of some files; gRPC fetches them before every handshake."""

    def __init__(self, files: CertificateFiles) -> None:
        """Read the files for the first time.

        Raises:
            SecurityError: they cannot be used.
        """
        self._files = files
        self.poller = FilePoller(files.marks, on_failure=_log_failure)
        self._current = read_certificates(files)
        self._log_use("serving with")

    def credentials(self) -> Any:
        """Return credentials for a gRPC server, which follow the files."""
        import grpc

        is_mutual = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._fetch, is_mutual)

    def _fetch(self) -> Any:
        """Return changed certificates, or None. Called by gRPC's own threads, under the GIL."""
        if not self.poller.is_due():
            return None
        changed = None
        with self.poller.attempt():  # it fails where one of two files is still to come
            self._current = read_certificates(self._files)
            changed = self._configuration()
            self._log_use("reloaded")
        return changed

    def _configuration(self) -> Any:
        import grpc

        pair = (self._current.key, self._current.chain)
        return grpc.ssl_server_certificate_configuration([pair], self._current.client_ca)

    def _log_use(self, action: str) -> None:
        left = self._current.not_after - datetime.now(UTC)
        level = logging.WARNING if left < _EXPIRES_SOON else logging.INFO
        until = f"{self._current.not_after:%Y-%m-%d}"
        _log.log(level, "%s %s, valid until %s", action, self._files.certificate, until)


def _log_failure(failure: str) -> None:
    _log.error("the certificates in use stay: %s", failure)


def _read(path: Path, what: str) -> bytes:
    try:
        return read_followed(path)
    except OSError as error:
        raise SecurityError(
            f"{what} {path} cannot be read: {error.strerror}. Look at the path and at its permissions"
        ) from None


def _first_of(path: Path, content: bytes) -> Any:
    """Return the first certificate of a file's content."""
    from cryptography import x509

    return _parsed(path, "PEM certificates", lambda: x509.load_pem_x509_certificates(content))[0]


def _parsed(path: Path, what: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except Exception as error:  # the library's own classes among them, for versions and algorithms
        # The library's message may quote the file; a key must not reach the log.
        raise SecurityError(
            f"{path} does not hold {what} ({type(error).__name__}); openssl x509 or pkey, with -in "
            f"{path}, shows more"
        ) from None
