"""Lets calls in by the token they bring, and follows the file of tokens.

A token is looked up by its SHA-256. How long that takes tells a stranger nothing: whoever varies a token
varies all of its hash, so there is no prefix to be guessed bit by bit. Tokens never reach the log; callers'
names do.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from re4.common.errors import UnauthenticatedError
from re4.serving.auth.tokens import Caller, Metadata, read_tokens, token_hash
from re4.serving.host.file_poller import FilePoller, file_mark, poll_forever

_HEADER: Final = "authorization"

_log = logging.getLogger(__name__)


class Authenticator:
    """Knows the callers of a file of tokens. Belongs to one event loop."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        """Read the file for the first time.

        Args:
            path: The file of tokens.
            folder: Where the workers share the levels of the rates; None for rates of this process alone.

        Raises:
            SecurityError: it cannot be used.
        """
        self._path = path
        self._folder = folder
        self._poller = FilePoller(lambda: file_mark(path), on_failure=_log_failure)
        self._callers: Mapping[bytes, Caller] = read_tokens(path, folder)

    def identify(self, metadata: Metadata) -> Caller:
        """Who calls.

        Raises:
            UnauthenticatedError: the call brings no token, or one that is unknown.
        """
        for key, value in metadata:
            if key == _HEADER and isinstance(value, str):
                scheme, _, token = value.partition(" ")
                caller = self._callers.get(token_hash(token))
                if caller is not None and scheme.lower() == "bearer":
                    return caller
                raise UnauthenticatedError(
                    "the token is not known here; send one that this server's operator gave you, as metadata "
                    "authorization: Bearer TOKEN"
                )
        raise UnauthenticatedError(
            "this server needs a token: send metadata authorization: Bearer TOKEN (re4's own verbs take "
            "--token-file FILE)"
        )

    def admit(self, metadata: Metadata) -> Caller:
        """Let a call in and charge its caller for one user.

        Raises:
            UnauthenticatedError: the call brings no token, or one that is unknown.
            RateError: the caller's rate is used up.
        """
        caller = self.identify(metadata)
        if caller.rate is not None:
            caller.rate.charge()
        return caller

    async def follow(self, poll_interval_s: float) -> None:
        """Read the file again whenever it changed, until cancelled."""
        await poll_forever(poll_interval_s, self.poll)

    async def poll(self) -> None:
        """Read a file that changed; one that cannot be used leaves the known tokens as they are."""
        if self._poller.is_due():
            with self._poller.attempt():
                self._callers = read_tokens(self._path, self._folder)
                names = sorted({caller.name for caller in self._callers.values()})
                _log.info("tokens read again: %s", ", ".join(names))


def _log_failure(failure: str) -> None:
    _log.error("the tokens known so far stay: %s", failure)
