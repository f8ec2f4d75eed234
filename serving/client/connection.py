"""The connection of a client to a server: TLS, certificates, token, and the error of a call that failed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import grpc

from re4.common.errors import SecurityError, ServerError, UsageError
from re4.serving.client.several_servers import is_several, several_options, target_of

TOKEN_VARIABLE: Final = "RE4_TOKEN"  # noqa: S105
"""Environment variable that may hold the token itself, which no option may: other users see command lines."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", -1),
    # By default the channels of one process to one address share a connection, and so one server process.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """TLS and token of a client. Plain values, which can be sent to another process."""

    ca: bytes | None = None
    """PEM: certificates of the authorities to trust; None for those that this machine trusts."""
    certificate: bytes | None = None
    """PEM: the client's own certificate, for mutual TLS."""
    key: bytes | None = field(default=None, repr=False)
    """PEM: the private key of that certificate."""
    is_tls: bool = False
    """Whether to use TLS."""
    server_name: str | None = None
    """Name that every server's certificate must have; None for the host of the address."""
    token: str | None = field(default=None, repr=False)
    """Bearer token."""

    @classmethod
    def read(
        cls,
        *,
        tls: bool = False,
        ca: Path | None = None,
        server_name: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        token_file: Path | None = None,
    ) -> Self:
        """Read certificates and the token from files; without a token file, from the variable RE4_TOKEN.

        Args:
            tls: Use TLS; implied by `ca`, `server_name` and `certificate`.
            ca: PEM file of the authorities to trust.
            server_name: Name that every server's certificate must have; None for the host of the address.
            certificate: PEM file of the client's own certificate, for mutual TLS.
            key: PEM file of its private key.
            token_file: File that holds the bearer token.

        Raises:
            UsageError: a certificate without its key, or a key without its certificate.
            SecurityError: a file cannot be read, or does not hold one token.
        """
        if (certificate is None) != (key is None):
            raise UsageError("--certificate and --key belong together: give both, or neither")
        return cls(
            ca=_read(ca),
            certificate=_read(certificate),
            key=_read(key),
            is_tls=tls or any(each is not None for each in (ca, server_name, certificate)),
            server_name=server_name,
            token=_token(token_file),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call: the token."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = CHANNEL_OPTIONS) -> grpc.Channel:
        """Return a channel to a server, or to several; it connects with the first call."""
        target, options = self._channel(address, options)
        if not self.is_tls:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, self._credentials(), options=options)

    def aio_channel(
        self, address: str, options: Sequence[tuple[str, Any]] = CHANNEL_OPTIONS
    ) -> grpc.aio.Channel:
        """Return a channel for the running event loop."""
        target, options = self._channel(address, options)
        if not self.is_tls:
            return grpc.aio.insecure_channel(target, options=list(options))
        return grpc.aio.secure_channel(target, self._credentials(), options=list(options))

    def _channel(
        self, address: str, options: Sequence[tuple[str, Any]]
    ) -> tuple[str, Sequence[tuple[str, Any]]]:
        name = self.server_name if self.is_tls else None
        own = (
            []
            if name is None
            else [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        )
        if not is_several(address):
            return address, [*options, *own]
        several = several_options(address, needs_name=self.is_tls and name is None)
        return target_of(address), [*options, *several, *own]

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


PLAIN: Final = Connection()
"""Neither TLS nor a token."""


def server_error(error: grpc.RpcError, address: str, timeout_s: float) -> ServerError:
    """Return the error of a call that failed: status, address, details and the next step."""
    # Every error that a call raises is also a Call, which carries status and details.
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerError(f"{code.name}: {address} did not answer within {timeout_s:g} seconds")
    message = f"{code.name} from {address}: {details}"
    if code is grpc.StatusCode.UNAVAILABLE and not str(details).startswith("the store of histories"):
        message += (
            ". Is a server running there, and does it speak TLS as this caller does? "
            f"Start one: re4 serve --bundles DIR --address {address}"
        )
    return ServerError(message)


def _token(path: Path | None) -> str | None:
    found = _read(path)
    text = os.environ.get(TOKEN_VARIABLE) if found is None else found.decode("utf-8", "replace")
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        place = TOKEN_VARIABLE if path is None else f"token file {path}"
        raise SecurityError(f"{place} does not hold one token: expected one word of ASCII characters")
    return token


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(
            f"{path} cannot be read: {error.strerror}. Look at the path and at its permissions"
        ) from None
