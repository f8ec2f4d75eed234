"""Roll-back: another version becomes the live one, after its verification and by one rename.

Servers that follow the directory load the version that the new `CURRENT` names, as after a publication.
"""

from pathlib import Path

from re4.bundle.layout import CURRENT, is_version_name
from re4.bundle.milvus.collections import check_collection
from re4.bundle.publishing.current import read_current
from re4.bundle.publishing.directory_lock import change_lock
from re4.bundle.publishing.versions import publication, version_names
from re4.bundle.verify import verify_version
from re4.common.errors import BundleError
from re4.common.files import replacing


def roll_back(bundles: Path, version: str | None = None) -> str:
    """Make a version the live one, after a check of every byte.

    Args:
        bundles: The bundle directory.
        version: Name of the version; None for the last one published before the live one. The live version
            is allowed: `CURRENT` is written again, and servers that refused it load it again.

    Returns:
        The version's name.

    Raises:
        BundleError: there is no such version, none before the live one, or it is damaged or does not fit
            together. `CURRENT` is unchanged.
    """
    try:
        with change_lock(bundles):
            name = version_before_live(bundles) if version is None else existing_version(bundles, version)
            check_collection(bundles / name, verify_version(bundles / name))
            with replacing(bundles / CURRENT) as part:
                part.write_text(f"{name}\n", encoding="ascii")
    except OSError as error:
        raise BundleError(f"{bundles}: cannot roll back ({error})") from error
    return name


def version_before_live(bundles: Path) -> str:
    """Return the name of the last version published before the live one.

    Raises:
        BundleError: there is none.
    """
    live = read_current(bundles)
    at = publication(bundles / live)
    older = [name for name in version_names(bundles) if publication(bundles / name) < at]
    if not older:
        raise BundleError(f"{bundles}: there is no version before the live one, {live}")
    return older[-1]


def existing_version(bundles: Path, version: str) -> str:
    """Return the name of a version that is there.

    Raises:
        BundleError: there is no such version; the message lists those that there are.
    """
    names = version_names(bundles)
    if not is_version_name(version) or version not in names:
        there = f"there is {', '.join(reversed(names))}" if names else "there is none"
        raise BundleError(f"{bundles}: no version {version!r:.60}; {there}")
    return version
