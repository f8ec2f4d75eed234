"""TLS certificates from files: read, checked, and read again when they change, without dropping a call.

Unusable files are reported in plain words at start, not by a library at the first handshake. While the server
runs, unusable files change nothing: the last good ones stay in use. A worker that starts meanwhile gets them
from the supervisor through a pipe, so that a private key is in no file but the operator's.
"""

import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from re4.common.errors import SecurityError
from re4.serving.host.file_poller import FilePoller, file_mark, read_followed

_EXPIRES_SOON: Final = timedelta(days=14)
"""A certificate with less time left is logged as a warning."""
_MAX_FILE_BYTES: Final = 1 << 20
"""Three files of this size fit into a message to a worker. All public authorities take some 220 KB."""

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
    key: bytes = field(repr=False)
    client_ca: bytes | None
    not_after: datetime
    """When the server's certificate ends."""

    def to_message(self) -> dict[str, str]:
        """Return the fields as texts, for a message to a worker."""
        contents = {"chain": self.chain, "key": self.key, "client_ca": self.client_ca}
        texts = {
            name: b64encode(content).decode() for name, content in contents.items() if content is not None
        }
        return texts | {"not_after": self.not_after.isoformat()}

    @classmethod
    def from_message(cls, fields: Mapping[str, str]) -> "Certificates":
        """Return what `to_message` was called on."""
        contents = {name: b64decode(text) for name, text in fields.items() if name != "not_after"}
        return cls(
            chain=contents["chain"],
            key=contents["key"],
            client_ca=contents.get("client_ca"),
            not_after=datetime.fromisoformat(fields["not_after"]),
        )


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

    def __init__(self, files: CertificateFiles, last_good: Certificates | None = None) -> None:
        """Read the files for the first time.

        Args:
            files: Their paths.
            last_good: Served while the files cannot be used; None where nothing was read before.

        Raises:
            SecurityError: the files cannot be used, and nothing was read before.
        """
        self._files = files
        self.poller = FilePoller(files.marks, on_failure=_log_failure)
        try:
            self.current = read_certificates(files)
            """The certificates in use."""
        except SecurityError as error:
            if last_good is None:
                raise
            self.current = last_good
            with self.poller.attempt():  # logs the error, and retries the files
                raise error
        self._log_use("serving with")

    def credentials(self) -> Any:
        """Return credentials for a gRPC server, which follow the files."""
        import grpc

        is_mutual = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._fetch, is_mutual)

    def refresh(self) -> bool:
        """Read files that changed, and return whether other certificates are in use now."""
        if not self.poller.is_due():
            return False
        before = self.current
        with self.poller.attempt():  # it fails where one of two files is still to come
            self.current = read_certificates(self._files)
            self._log_use("reloaded")
        return self.current is not before

    async def poll(self) -> None:
        """Read files that changed; for a process without handshakes."""
        self.refresh()

    def _fetch(self) -> Any:
        """Return changed certificates, or None. Called by gRPC's own threads, under the GIL."""
        return self._configuration() if self.refresh() else None

    def _configuration(self) -> Any:
        import grpc

        pair = (self.current.key, self.current.chain)
        return grpc.ssl_server_certificate_configuration([pair], self.current.client_ca)

    def _log_use(self, action: str) -> None:
        left = self.current.not_after - datetime.now(UTC)
        level = logging.WARNING if left < _EXPIRES_SOON else logging.INFO
        until = f"{self.current.not_after:%Y-%m-%d}"
        _log.log(level, "%s %s, valid until %s", action, self._files.certificate, until)


def _log_failure(failure: str) -> None:
    _log.error("the certificates in use stay: %s", failure)


def _read(path: Path, what: str) -> bytes:
    try:
        content = read_followed(path)
    except OSError as error:
        raise SecurityError(
            f"{what} {path} cannot be read: {error.strerror}. Look at the path and at its permissions"
        ) from None
    if len(content) > _MAX_FILE_BYTES:
        raise SecurityError(
            f"{what} {path} has {len(content):,} bytes, {_MAX_FILE_BYTES:,} are allowed; leave the "
            "certificates that are needed"
        )
    return content


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
