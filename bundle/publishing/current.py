"""The live version, as `CURRENT` names it. `verify.py` checks whether that version is intact."""

from pathlib import Path
from typing import Final

from re4.bundle.layout import CURRENT, is_version_name
from re4.bundle.safe_files import is_folder, read_named
from re4.common.errors import BundleDamagedError, BundleError

_MAX_BYTES: Final = 100


def read_current(bundles: Path) -> str:
    """Return the name of the live version, checked to be a name and not a path.

    Args:
        bundles: The bundle directory.

    Raises:
        BundleError: the directory is missing, it has no version yet, or `CURRENT` does not contain the
            name of a version.
    """
    where = str(bundles / CURRENT)
    content = read_named(bundles, CURRENT, max_bytes=_MAX_BYTES)
    if content is None:
        raise BundleError(
            f"{where}: missing: no version was published here yet. "
            f"Publish one: re4 export RUN --bundles {bundles}"
        )
    name = content.decode("ascii", errors="replace").removesuffix("\n")
    if not is_version_name(name):
        raise BundleError(
            f"{where}: holds {name!r}, not the name of a version (20260131T235959Z-0123abcd). "
            "Write the name of one of the versions beside it there, or publish again"
        )
    return name


def live_version(bundles: Path) -> Path:
    """Return the folder of the live version.

    Raises:
        BundleError: as `read_current`.
        BundleDamagedError: `CURRENT` names a version that is not there.
    """
    path = bundles / read_current(bundles)
    if not is_folder(path):
        raise BundleDamagedError(
            f"{bundles / CURRENT}: names {path.name}, but there is no such folder. "
            "Write the name of one of the versions beside it there, or publish again"
        )
    return path
