"""Addresses of Milvus servers, and the credentials for them. Imports no library of Milvus.

An address is `milvus://HOST:PORT`, optionally with `/DATABASE`; `milvus+tls` for TLS. It never holds
credentials: these are in environment variables, or in a file that one names.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from re4.common.errors import SecurityError, UsageError

TOKEN: Final = "RE4_MILVUS_TOKEN"  # noqa: S105 (the name of a variable)
TOKEN_FILE: Final = "RE4_MILVUS_TOKEN_FILE"  # noqa: S105
CA_FILE: Final = "RE4_MILVUS_CA_FILE"
"""Environment variables: the token (`USER:PASSWORD`, or an API key), a file with it, and a PEM file with the
authorities of the server's certificate."""

AUTO: Final = "auto"
INDEX_TYPES: Final = {"flat": "FLAT", "ivf": "IVF_FLAT", "ivf-sq8": "IVF_SQ8", "hnsw": "HNSW"}
"""Milvus's index types by the names of `?index=`, which are those of `--index`."""

_TLS: Final = {"milvus": False, "milvus+tls": True}
_DEFAULT_PORT: Final = 19530


@dataclass(frozen=True, kw_only=True)
class MilvusAddress:
    """The address of a server, and a database on it."""

    host: str
    port: int = _DEFAULT_PORT
    database: str = ""
    """Empty for the server's default database."""
    has_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address.

        Raises:
            UsageError: not an address, or one with credentials.
        """
        parts = urlsplit(text)
        try:
            has_tls, port = _TLS[parts.scheme], parts.port
        except (KeyError, ValueError):
            raise UsageError(
                f"{text!r:.200} is no address of Milvus: milvus://HOST:PORT is needed, or milvus+tls://HOST:PORT"
            ) from None
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "the address of Milvus holds credentials, which the manifest and the log would show; put "
                f"them into the environment variable {TOKEN}, or into a file that {TOKEN_FILE} names"
            )
        database = parts.path.strip("/")
        if not parts.hostname or "/" in database or parts.fragment:
            raise UsageError(
                f"{text!r:.200} is no address of Milvus: milvus://HOST:PORT or milvus://HOST:PORT/DATABASE"
            )
        return cls(host=parts.hostname, port=port or _DEFAULT_PORT, database=database, has_tls=has_tls)

    @property
    def target(self) -> str:
        """Return HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """Return the address as it is parsed."""
        scheme = "milvus+tls" if self.has_tls else "milvus"
        return f"{scheme}://{self.target}{'/' if self.database else ''}{self.database}"


def is_milvus(index: str) -> bool:
    """Return whether a value of `--index` is an address of Milvus."""
    return index.partition("://")[0] in _TLS


def parse_index(index: str) -> tuple[MilvusAddress, str]:
    """Parse a value of `--index`: an address, and optionally `?index=NAME`.

    Returns:
        The address, and the name of an index type, `auto` where none is given.

    Raises:
        UsageError: not an address, or an unknown type.
    """
    address, _, query = index.partition("?")
    given = parse_qs(query, keep_blank_values=True)
    (name,) = given.pop("index", [AUTO])[-1:]
    if given or name not in {AUTO, *INDEX_TYPES}:
        raise UsageError(
            f"--index {index!r:.200}: after the address of Milvus only ?index=NAME may stand, one of "
            f"{', '.join((AUTO, *INDEX_TYPES))}"
        )
    return MilvusAddress.parse(address), name


def milvus_token() -> str:
    """Return the token for Milvus servers; empty for none.

    Raises:
        SecurityError: its file cannot be read.
    """
    if token := os.environ.get(TOKEN, ""):
        return token
    if not (name := os.environ.get(TOKEN_FILE, "")):
        return ""
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecurityError(f"{TOKEN_FILE} names {name}, which cannot be read: {error}") from error


def authorities_file() -> str:
    """Return the name of the PEM file with the authorities of servers; empty for those of the system."""
    return os.environ.get(CA_FILE, "")


def authorities() -> bytes | None:
    """Return the PEM text of the authorities of a server's certificate; None for those of the system.

    Raises:
        SecurityError: their file cannot be read.
    """
    if not (name := authorities_file()):
        return None
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise SecurityError(f"{CA_FILE} names {name}, which cannot be read: {error}") from error
