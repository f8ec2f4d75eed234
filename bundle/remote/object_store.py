"""Objects of a bundle directory in S3, Google Cloud Storage or Azure, by the library obstore.

obstore was chosen over fsspec because it has conditional puts for all three: fsspec has them for none in its
common interface. Credentials, endpoint and region come from the usual variables of the environment, such as
AWS_ACCESS_KEY_ID and AWS_ENDPOINT.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from re4.common.errors import BundleError, BundleUnavailableError, UsageError
from re4.common.extras import require

_SCHEMES: Final = ("s3://", "gs://", "az://", "azure://")
_ALLOW_HTTP: Final = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")
_CHUNK_BYTES: Final = 8 << 20
_TIMEOUT: Final = timedelta(seconds=60)
_RETRY_TIMEOUT: Final = timedelta(seconds=30)
_MAX_RETRIES: Final = 4
_MAX_SMALL_BYTES: Final = 64 << 20


class StoredObject(NamedTuple):
    """A small object, read as a whole."""

    content: bytes
    e_tag: str | None
    generation: str | None = None
    """Google Cloud Storage compares this instead of the tag."""

    @property
    def identity(self) -> dict[str, str]:
        """What a conditional put compares."""
        facts = {"e_tag": self.e_tag, "version": self.generation}
        return {name: value for name, value in facts.items() if value is not None}


class ObjectStore:
    """The objects under one address. Threads may share it."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet.

        Args:
            url: Bucket and prefix, such as `s3://models/shop`.

        Raises:
            UsageError: not such an address, or obstore is not installed.
        """
        if not url.startswith(_SCHEMES):
            raise UsageError(f"{url!r} is no address of object storage; give s3://, gs:// or az://")
        require("object storage", "obstore")
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.url = url.rstrip("/")
        try:
            self._store = from_url(
                self.url,
                client_options={
                    "timeout": _TIMEOUT,
                    "connect_timeout": timedelta(seconds=5),
                    # Options that are given here take the place of those of the environment.
                    "allow_http": any(
                        os.environ.get(name, "").lower() in ("true", "1") for name in _ALLOW_HTTP
                    ),
                },
                retry_config={"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT},
            )
        except BaseError as error:
            raise UsageError(f"{url}: {error}") from None

    def get(self, name: str) -> StoredObject | None:
        """Return a small object; None where there is none.

        Raises:
            BundleUnavailableError: it cannot be read at this moment.
            BundleError: it is larger than a small file may be.
        """
        import obstore
        from obstore.exceptions import NotFoundError

        with self._errors(name):
            try:
                found = obstore.get(self._store, name)
            except (NotFoundError, FileNotFoundError):
                return None
            if found.meta["size"] > _MAX_SMALL_BYTES:
                raise BundleError(f"{self.url}/{name}: {found.meta['size']} bytes; no such file is so large")
            meta = found.meta
            return StoredObject(bytes(found.bytes()), meta.get("e_tag"), meta.get("version"))

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Yield a range of an object.

        Raises:
            BundleUnavailableError: it cannot be read at this moment, or is not there.
        """
        import obstore

        for first in range(start, stop, _CHUNK_BYTES):
            with self._errors(name):
                last = min(first + _CHUNK_BYTES, stop)
                content = bytes(obstore.get_range(self._store, name, start=first, end=last))
            yield content

    def size(self, name: str) -> int | None:
        """Return the size of an object; None where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        with self._errors(name):
            try:
                return int(obstore.head(self._store, name)["size"])
            except (NotFoundError, FileNotFoundError):
                return None

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, whole or not at all.

        Raises:
            BundleUnavailableError: it cannot be written at this moment.
        """
        import obstore

        with self._errors(name):
            obstore.put(self._store, name, content)

    def put_if_unchanged(self, name: str, content: bytes, before: StoredObject | None) -> bool:
        """Replace an object if it is still the one that was read; return whether it was.

        Args:
            name: Of the object.
            content: Its new content.
            before: What was read; None where there was no object.

        Raises:
            BundleUnavailableError: it cannot be written at this moment.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        mode: Any = "create" if before is None else before.identity
        with self._errors(name):
            try:
                obstore.put(self._store, name, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, NotFoundError, FileExistsError):
                # The reply to an earlier try may have been lost.
                found = self.get(name)
                return found is not None and found.content == content
        return True

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects below a prefix, without the part before the address."""
        import obstore

        with self._errors(prefix):
            return [str(each["path"]) for page in obstore.list(self._store, prefix) for each in page]

    def old_names(self, prefix: str, min_age_s: float) -> list[str]:
        """Return the names of objects below a prefix that are so much older than the newest one there."""
        import obstore

        with self._errors(prefix):
            found = [each for page in obstore.list(self._store, prefix) for each in page]
        newest = max((each["last_modified"] for each in found), default=None)
        return [
            str(each["path"])
            for each in found
            if newest is not None and (newest - each["last_modified"]).total_seconds() > min_age_s
        ]

    def delete(self, names: list[str]) -> None:
        """Remove objects."""
        import obstore

        if names:
            with self._errors(names[0]):
                obstore.delete(self._store, names)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise BundleUnavailableError(f"{self.url}/{name}: {reason}") from None
