"""The canary: a second version that servers load beside the live one, for a share of the calls.

    bundles/CANARY    {"schema_version": 1, "version": "20260131T235959Z-0123abcd", "share": 0.05,
                       "is_shadow": false}

The file is replaced as a whole, and servers follow it as they follow `CURRENT`. Without it there is none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from re4.bundle.layout import CANARY, CURRENT, is_version_name
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.directory_lock import change_lock
from re4.bundle.publishing.rollback import existing_version
from re4.bundle.safe_files import read_named
from re4.bundle.verify import verify_version
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.files import replacing

SCHEMA_VERSION: Final = 1
_MAX_BYTES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A version beside the live one."""

    version: str
    """Its name."""
    share: float
    """Share of the calls that it answers, or, of a shadow, that it is asked too: above 0 and at most 1."""
    is_shadow: bool = False
    """Whether the live version answers all calls, and this one is only compared with it."""


def read_canary(bundles: Path) -> Canary | None:
    """Return the canary of a bundle directory; None where there is none.

    Raises:
        BundleError: no such directory, or the file was written by code with another schema version.
        BundleDamagedError: the file was not written by `start_canary`.
        BundleUnavailableError: it cannot be read at this moment.
    """
    where = str(bundles / CANARY)
    content = read_named(bundles, CANARY, max_bytes=_MAX_BYTES)
    return None if content is None else parse_canary(content, where)


def parse_canary(content: bytes, where: str) -> Canary:
    """Return the canary that a file names; the errors are those of `read_canary`."""
    advice = "Remove the file, or start the canary again: re4 canary"
    try:
        value = json.loads(content)
        schema_version = value.pop("schema_version")
        canary = Canary(**value)
        is_valid = (
            isinstance(canary.version, str)
            and is_version_name(canary.version)
            and isinstance(canary.share, int | float)
            and 0 < canary.share <= 1
            and isinstance(canary.is_shadow, bool)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleDamagedError(f"{where}: names no canary ({type(error).__name__}). {advice}") from None
    if schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema_version is {schema_version!r:.20}, this code reads {SCHEMA_VERSION}. "
            "Run the code that wrote it"
        )
    if not is_valid:
        raise BundleDamagedError(f"{where}: names no version with a share above 0 and at most 1. {advice}")
    return canary


def start_canary(bundles: Path, canary: Canary) -> None:
    """Ask servers to load a version beside the live one; an earlier canary ends.

    Raises:
        BundleError: there is no such version, it is damaged, or it is the live one. The file is unchanged.
    """
    value = {"schema_version": SCHEMA_VERSION, **vars(canary)}
    try:
        with change_lock(bundles):
            name = existing_version(bundles, canary.version)
            if name == read_current(bundles):
                raise BundleError(f"{bundles}: {name} is the live version; a canary is another one")
            verify_version(bundles / name)
            with replacing(bundles / CANARY) as part:
                part.write_text(json.dumps(value) + "\n", encoding="ascii")
    except OSError as error:
        raise BundleError(f"{bundles / CANARY}: cannot be written ({error})") from error


def end_canary(bundles: Path, *, is_promoted: bool) -> str:
    """End the canary.

    Args:
        bundles: The bundle directory.
        is_promoted: Whether its version becomes the live one.

    Returns:
        The version's name.

    Raises:
        BundleError: there is no canary, or a version to promote is damaged. Nothing has changed.
    """
    try:
        with change_lock(bundles):
            canary = read_canary(bundles)
            if canary is None:
                raise BundleError(f"{bundles}: there is no canary")
            if is_promoted:
                verify_version(bundles / existing_version(bundles, canary.version))
                with replacing(bundles / CURRENT) as part:
                    part.write_text(f"{canary.version}\n", encoding="ascii")
            (bundles / CANARY).unlink()
    except OSError as error:
        raise BundleError(f"{bundles}: the canary cannot be ended ({error})") from error
    return canary.version
