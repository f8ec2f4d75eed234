"""Authentication of calls by bearer token; the file of tokens is followed.

A token is looked up by its SHA-256. The time of the lookup reveals nothing: a change of one character changes
the whole hash, so no prefix can be guessed step by step. Callers' names reach the log, tokens never do.
"""

import logging
import os
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from re4.common.errors import SecurityError, UnauthenticatedError
from re4.serving.auth.tokens import Caller, Metadata, Scope, parse_tokens, read_token_file, token_hash
from re4.serving.host.file_poller import FilePoller, file_mark, poll_forever

_HEADER: Final = "authorization"
_COPY: Final = "+tokens"
"""Name of the copy of the last good file, for the next worker. No token bucket can have this name."""

_log = logging.getLogger(__name__)


class Authenticator:
    """The callers of a file of tokens. Belongs to one event loop."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        """Read the file for the first time.

        Args:
            path: The file of tokens.
            folder: Folder that all workers share, for token buckets and for a copy of the last good file;
                None for a single worker.

        Raises:
            SecurityError: the file cannot be used, and no worker of this server has read a good one.
        """
        self._path = path
        self._folder = folder
        self.poller = FilePoller(lambda: file_mark(path), on_failure=_log_failure)
        self._callers: Mapping[bytes, Caller] = {}
        try:
            self._read()
        except (SecurityError, OSError) as error:
            if folder is None or not (folder / _COPY).exists():
                raise
            # The callers that every other worker admits.
            self._callers = parse_tokens((folder / _COPY).read_bytes(), folder / _COPY, folder)
            with self.poller.attempt():  # logs the error, and retries the file
                raise error

    def identify(self, metadata: Metadata) -> Caller:
        """Return the caller whose token the metadata holds.

        Raises:
            UnauthenticatedError: the call has no token, or an unknown one.
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
            "this server needs a token: send metadata authorization: Bearer TOKEN (re4's own subcommands "
            "take --token-file FILE)"
        )

    def admit(self, metadata: Metadata, scope: Scope, method: str) -> Caller:
        """Return the caller of a call, and charge its rate for one user.

        Args:
            metadata: Of the call.
            scope: The scope that the method needs.
            method: Name of the method.

        Raises:
            UnauthenticatedError: the call has no token, or an unknown one.
            RateError: the caller's rate is used up.
            PermissionDeniedError: the token lacks the scope.
        """
        caller = self.identify(metadata)
        if caller.rate is not None:
            caller.rate.charge()
        caller.require(scope, method)
        return caller

    async def follow(self, poll_interval_s: float) -> None:
        """Read the file again whenever it changed, until cancelled."""
        await poll_forever(poll_interval_s, self.poll, self.poller.wake)

    async def poll(self) -> None:
        """Read a file that changed; one that cannot be used leaves the known tokens as they are."""
        if self.poller.is_due():
            with self.poller.attempt():
                before = self._names
                self._read()
                names = self._names
                if self._folder is not None:
                    for gone in before - names:
                        (self._folder / gone).unlink(missing_ok=True)
                _log.info("tokens read again: %s", ", ".join(sorted(names)))

    @property
    def _names(self) -> set[str]:
        return {caller.name for caller in self._callers.values()}

    def _read(self) -> None:
        mark = file_mark(self._path)
        content = read_token_file(self._path)
        self._callers = parse_tokens(content, self._path, self._folder)
        if self._folder is not None:
            self._keep(content, mark, self._folder / _COPY)

    def _keep(self, content: bytes, mark: Hashable, copy: Path) -> None:
        """Write the copy for the next worker, unless the file has changed meanwhile."""
        part = copy.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # the folder is full: the next worker may have to wait for a good file
            try:
                part.write_bytes(content)
                if file_mark(self._path) == mark:
                    part.replace(copy)
            finally:
                part.unlink(missing_ok=True)


def _log_failure(failure: str) -> None:
    _log.error("the tokens known so far stay: %s", failure)
