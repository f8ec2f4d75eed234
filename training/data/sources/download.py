"""Getting files from elsewhere: over HTTPS, and out of Python packages. Knows nothing of any data set."""

import hashlib
import http.client
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from re4.common.console import progress
from re4.common.errors import FetchError

_TIMEOUT_S = 15.0
_BLOCK_BYTES = 1 << 16
_PIP_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The files of a fetched data set, ready for `re4 data prepare`."""

    events: Path
    """The event log."""
    catalogue: Path | None
    """The items' descriptions; None where there are none."""
    source: Path
    """Where it came from and its terms of use, for people."""
    prepare_options: str = ""
    """What to add to `re4 data prepare` for the data set that papers use."""


class Response(Protocol):
    """A download that was opened."""

    def read(self, num_bytes: int, /) -> bytes:
        """Give up to so many bytes more; none at the end."""

    @property
    def length(self) -> int | None:
        """How many bytes are still to come, where the site says so."""

    @property
    def first_byte(self) -> int:
        """Where in the file the answer begins: where it was asked to, or at 0 from a site that cannot."""

    def close(self) -> None:
        """Let the connection go."""


class Opener(Protocol):
    """Opens an address at one of its bytes; raises OSError where it cannot be reached."""

    def __call__(self, address: str, first_byte: int = 0) -> Response:
        """Open it."""


PackageGetter = Callable[[str, Path], Path]
"""Puts a package's wheel into a folder and gives its path; raises FetchError where it cannot."""


class _WebResponse:
    """An answer over HTTP, which says itself where in the file it begins."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.read = response.read
        self.close = response.close
        self.length = response.length
        content_range = response.headers.get("Content-Range", "")
        is_part = response.status == HTTPStatus.PARTIAL_CONTENT
        self.first_byte = int(content_range.removeprefix("bytes ").split("-")[0]) if is_part else 0


def open_address(address: str, first_byte: int = 0) -> Response:
    """Open an HTTPS address; give up after 15 seconds of silence."""
    if not address.startswith("https://"):
        raise ValueError(f"{address!r} is not an https address")
    return open_web(address, first_byte)


def open_web(address: str, first_byte: int = 0) -> Response:
    """Open a web address at one of its bytes."""
    headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - the caller's choice
    return _WebResponse(urllib.request.urlopen(request, timeout=_TIMEOUT_S))  # noqa: S310


def download(address: str, file: Path, opener: Opener, *, md5: str | None = None) -> None:
    """Download an address into `file`, which appears only when it is complete.

    What an interrupted download left, in a file beside it that ends in `.part`, is gone on from.

    Raises:
        OSError: The address cannot be reached, or breaks off.
        FetchError: The download ended early, or is not what its checksum says; what is wrong is removed.
    """
    part = file.with_name(file.name + ".part")
    response = opener(address, part.stat().st_size if part.exists() else 0)
    try:
        num_bytes = response.first_byte
        expected = None if response.length is None else num_bytes + response.length
        mode = "ab" if num_bytes else "wb"
        with part.open(mode) as stream, progress(f"fetching {file.name}", expected, unit_bytes=True) as bar:
            bar.advance(num_bytes)
            while block := response.read(_BLOCK_BYTES):
                stream.write(block)
                num_bytes += len(block)
                bar.advance(len(block))
    finally:
        response.close()
    if expected is not None and num_bytes != expected:
        raise FetchError(f"{address} ended after {num_bytes:,} of {expected:,} bytes; try again to go on")
    if md5 is not None:
        _check_md5(part, md5, address)
    part.rename(file)


def read_small(address: str, opener: Opener) -> str:
    """Give the text at an address, at most a block of it.

    Raises:
        OSError: The address cannot be reached.
    """
    response = opener(address)
    try:
        return response.read(_BLOCK_BYTES).decode("utf-8", errors="replace")
    finally:
        response.close()


def _check_md5(part: Path, md5: str, address: str) -> None:
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        part.unlink()
        raise FetchError(
            f"{address} has the MD5 {found}, its site says {md5}: the download was damaged and is removed; "
            "try again"
        )


def get_package(requirement: str, folder: Path) -> Path:
    """Let pip put the wheel of a package into a folder, without installing it.

    Raises:
        FetchError: pip cannot be run, or fails, or takes over five minutes.
    """
    # Asked of this very interpreter's pip, so that its index, proxy and certificates settings hold.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), requirement]
    with progress(f"fetching the package {requirement}", None):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
            raise FetchError(f"pip could not download {requirement}: {last}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FetchError(f"pip could not download {requirement}: {error}") from error
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels for {requirement} where one was expected")
    return wheels[0]
