"""How a caller reaches a server: in plain text or by TLS, with or without a certificate and a token."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import grpc

from re4.common.errors import SecurityError, UsageError

TOKEN_VARIABLE: Final = "RE4_TOKEN"  # noqa: S105
"""Environment variable that may hold the token itself: command lines are there for all to see."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", -1),
    # A connection of its own: those of one process to one address would share one, and so one server process.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What a caller needs beside the address; plain values, which can be sent to another process."""

    ca: bytes | None = None
    """PEM: authorities whose servers are trusted; TLS without them trusts those that this machine does."""
    certificate: bytes | None = None
    """PEM: the caller's own certificate, for mutual TLS."""
    key: bytes | None = field(default=None, repr=False)
    """PEM: its private key."""
    is_tls: bool = False
    """Whether to speak TLS."""
    token: str | None = field(default=None, repr=False)
    """Bearer token."""

    @classmethod
    def read(
        cls,
        *,
        tls: bool = False,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        token_file: Path | None = None,
    ) -> Self:
        """Read what files and the environment hold; any of the certificates' files means TLS.

        Raises:
            UsageError: a certificate without its key, or the other way round.
            SecurityError: a file cannot be read, or the token is none.
        """
        if (certificate is None) != (key is None):
            raise UsageError("--certificate and --key belong together: give both, or neither")
        return cls(
            ca=_read(ca),
            certificate=_read(certificate),
            key=_read(key),
            is_tls=tls or ca is not None or certificate is not None,
            token=_token(token_file),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self, address: str, options: Sequence[tuple[str, Any]] = CHANNEL_OPTIONS) -> grpc.Channel:
        """A channel to a server; it connects with the first call."""
        if not self.is_tls:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._credentials(), options=options)

    def aio_channel(
        self, address: str, options: Sequence[tuple[str, Any]] = CHANNEL_OPTIONS
    ) -> grpc.aio.Channel:
        """The same for an event loop."""
        if not self.is_tls:
            return grpc.aio.insecure_channel(address, options=list(options))
        return grpc.aio.secure_channel(address, self._credentials(), options=list(options))

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


PLAIN: Final = Connection()
"""Neither TLS nor a token."""


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
