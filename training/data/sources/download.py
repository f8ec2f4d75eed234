"""Download files over HTTPS, and out of Python packages."""

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
    """A text file with its source and its terms of use."""
    prepare_options: str = ""
    """Options of `re4 data prepare` that give the data set of the papers."""


class Response(Protocol):
    """An open download."""

    def read(self, num_bytes: int, /) -> bytes:
        """Return up to `num_bytes` further bytes; none at the end."""

    @property
    def length(self) -> int | None:
        """The number of remaining bytes, if the site states it."""

    @property
    def first_byte(self) -> int:
        """The position of the first byte: the requested one, or 0 from a site without ranges."""

    def close(self) -> None:
        """Close the connection."""


class Opener(Protocol):
    """Opens an address at one of its bytes; raises OSError if it cannot be reached."""

    def __call__(self, address: str, first_byte: int = 0) -> Response:
        """Open it."""


PackageGetter = Callable[[str, Path], Path]
"""Downloads a package's wheel into a folder and returns its path; raises FetchError."""


class _WebResponse:
    """A response over HTTP, with the position of its first byte."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.read = response.read
        self.close = response.close
        self.length = response.length
        content_range = response.headers.get("Content-Range", "")
        is_part = response.status == HTTPStatus.PARTIAL_CONTENT
        self.first_byte = int(content_range.removeprefix("bytes ").split("-")[0]) if is_part else 0


def open_address(address: str, first_byte: int = 0) -> Response:
    """Open an HTTPS address; fail after 15 seconds without data."""
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

    An interrupted download is continued from the file beside it that ends in `.part`.

    Raises:
        OSError: The address cannot be reached, or breaks off.
        FetchError: The download ended early, or its checksum differs; a wrong file is removed.
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
    """Return the text at an address, at most a block of it.

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
    """Download the wheel of a package into a folder by pip, without installing it.

    Raises:
        FetchError: pip cannot be run, or fails, or takes over five minutes.
    """
    # This interpreter's own pip has the settings for index, proxy and certificates.
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
