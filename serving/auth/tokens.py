"""The file of tokens: SHA-256 hashes of bearer tokens, each with its caller's name, scopes and rate.

The file holds hashes, no secret, so a reader of it cannot call:

    [ranking]
    sha256 = "…"            # or a list, while one token replaces another
    scopes = ["retrieve", "record-events"]   # default: ["retrieve"]
    users_per_s = 200       # default: no limit
    burst = 400             # users at once; default: those of one second

Knows nothing about gRPC.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

from re4.common.errors import PermissionDeniedError, SecurityError
from re4.serving.auth.rate_limit import NAME, TokenBucket
from re4.serving.host.file_poller import read_followed
from re4.settings.sources import unknown_names

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
"""The metadata of a gRPC call."""

_FIELDS: Final = ("sha256", "scopes", "users_per_s", "burst")
_SMALLEST: Final = 1e-100
_LARGEST: Final = 1e100
"""Bounds of rates and bursts: a token bucket's arithmetic stays finite within them."""
_HEX: Final = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """A group of calls that a token may make."""

    RETRIEVE = "retrieve"
    """Candidates, interests, and the facts of the server."""
    RECORD_EVENTS = "record-events"
    """Record events of users, and forget users."""
    EDIT_ITEMS = "edit-items"
    """Add, replace and remove items."""
    READ_HISTORIES = "read-histories"
    """Read the stored events of users."""


DEFAULT_SCOPES: Final = frozenset({Scope.RETRIEVE})
"""The scopes of an entry that names none."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The owner of a token."""

    name: str
    """For logs and metrics."""
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    """The calls that it may make."""
    rate: TokenBucket | None
    """None for no limit."""

    def require(self, scope: Scope, what: str) -> None:
        """Check that the token has a scope.

        Args:
            scope: The scope.
            what: The call, or the part of it, that needs the scope; for the message.

        Raises:
            PermissionDeniedError: it has not.
        """
        if scope not in self.scopes:
            own = ", ".join(sorted(self.scopes))
            raise PermissionDeniedError(
                f"{what} needs the scope {scope}; the token of {self.name} has {own}. The server's "
                f"operator can add it to the entry [{self.name}] of the tokens file"
            )


def token_hash(token: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path, folder: Path | None = None) -> Mapping[bytes, Caller]:
    """Read a file of tokens.

    Args:
        path: The file.
        folder: Folder of the token buckets that all workers share; None for buckets of this process.

    Returns:
        The caller of each token's `token_hash`.

    Raises:
        SecurityError: the file cannot be read, or an entry of it cannot be used.
    """
    return parse_tokens(read_token_file(path), path, folder)


def read_token_file(path: Path) -> bytes:
    """Return the content of a file of tokens.

    Raises:
        SecurityError: the file cannot be read.
    """
    try:
        return read_followed(path)
    except OSError as error:
        raise SecurityError(f"tokens file {path} cannot be read: {error}") from None


def parse_tokens(content: bytes, path: Path, folder: Path | None = None) -> Mapping[bytes, Caller]:
    """Return the caller of each token's `token_hash`; arguments and errors as of `read_tokens`."""
    try:
        entries = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, too many digits
        raise SecurityError(f"tokens file {path} cannot be read: {error}") from None
    callers: dict[bytes, Caller] = {}
    for name, entry in entries.items():
        place = f"tokens file {path}, [{name}]"
        digests, rate = _entry(place, name, entry, folder)
        caller = Caller(name=name, rate=rate, scopes=_scopes(place, entry))
        for digest in digests:
            if digest in callers:
                raise SecurityError(
                    f"tokens file {path}: {callers[digest].name} and {name} have the same token; make one "
                    f"for each"
                )
            callers[digest] = caller
    if not callers:
        raise SecurityError(
            f"tokens file {path} holds no token, so nobody could call; add one: re4 token NAME"
        )
    return callers


def _entry(place: str, name: str, entry: Any, folder: Path | None) -> tuple[list[bytes], TokenBucket | None]:
    if not NAME.fullmatch(name):
        raise SecurityError(f"{place}: a name has 1 to 64 letters, digits, dots, hyphens or underscores")
    if not isinstance(entry, dict):
        raise SecurityError(f'{place}: expected a table with sha256 = "…"; re4 token {name} prints one')
    unknown = unknown_names(f"{place}:", entry, _FIELDS)
    if unknown:
        raise SecurityError(unknown)
    hashes = entry.get("sha256", [])
    hashes = [hashes] if isinstance(hashes, str) else hashes
    if not isinstance(hashes, list) or not hashes:
        raise SecurityError(f"{place}: sha256 is missing; re4 token {name} prints one")
    for each in hashes:
        # The value is not shown: it may be the token itself, entered by mistake.
        if not isinstance(each, str) or not _HEX.fullmatch(each):
            raise SecurityError(
                f"{place}: sha256 is not 64 digits from 0-9a-f; re4 token {name} prints a token and its hash"
            )
    digests = [bytes.fromhex(each) for each in hashes]
    users_per_s, burst = (_number(place, entry, field) for field in ("users_per_s", "burst"))
    if users_per_s is None:
        if burst is not None:
            raise SecurityError(f"{place}: burst without users_per_s; give both, or neither for no limit")
        return digests, None
    return digests, TokenBucket(
        name, users_per_s=users_per_s, burst=max(1, burst or users_per_s), folder=folder
    )


def _scopes(place: str, entry: Mapping[str, Any]) -> frozenset[Scope]:
    """Return the scopes of an entry."""
    named = entry.get("scopes", [str(scope) for scope in DEFAULT_SCOPES])
    known = [str(scope) for scope in Scope]
    if not isinstance(named, list) or not named or not all(each in known for each in named):
        raise SecurityError(
            f"{place}: scopes is {named!r:.200}; it must be a list of some of {', '.join(known)}"
        )
    return frozenset(Scope(each) for each in named)


def _number(place: str, entry: Mapping[str, Any], field: str) -> float | None:
    """Return a positive number of an entry; None where it has none."""
    value = entry.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not _SMALLEST <= value <= _LARGEST:
        shown = f"{value!r}" if not isinstance(value, int) or abs(value) < _LARGEST else "too large"
        raise SecurityError(f"{place}: {field} is {shown}; it must be a number above 0 and at most 1e100")
    return float(value)
