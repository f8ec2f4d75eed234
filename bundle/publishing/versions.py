"""The versions of a bundle directory: their order and their facts.

Versions are ordered by publication: by `created_at` of the manifest, which the publisher keeps ascending even
where the clock is set back, then by name. A version whose manifest cannot be read has the time of its name.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from re4.bundle.layout import is_version_name
from re4.bundle.manifest import Manifest
from re4.bundle.publishing.current import read_current
from re4.bundle.safe_files import is_folder, names_in, open_folder
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleError, BundleUnavailableError


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """Facts from the manifest of a version; only `name` and `problem` where it cannot be read."""

    name: str
    is_live: bool
    created_at: str = ""
    """ISO 8601, UTC."""
    model: str = ""
    index: str = ""
    num_items: int = 0
    num_bytes: int = 0
    """Size of all files but the manifest."""
    problem: str = ""
    """Why the version cannot be used; empty where no problem was found."""


def version_names(bundles: Path) -> list[str]:
    """Return the names of the versions, oldest publication first: real folders that are named like one.

    Raises:
        BundleError: no such directory.
    """
    with open_folder(bundles) as folder:
        paths = [bundles / name for name in names_in(folder, where=bundles) if is_version_name(name)]
    versions = [path for path in paths if is_folder(path)]
    return [path.name for path in sorted(versions, key=publication)]


def publication(path: Path) -> tuple[datetime, str]:
    """Return the place of a version in the order of publication: its time, then its name.

    Raises:
        BundleUnavailableError: its manifest cannot be read at this moment.
    """
    for text in (_created_at(path), path.name.partition("-")[0]):
        with suppress(ValueError):
            return datetime.fromisoformat(text), path.name
    return datetime.min.replace(tzinfo=UTC), path.name


def _created_at(path: Path) -> str:
    try:
        return read_manifest(path).created_at
    except BundleUnavailableError:
        raise
    except BundleError:
        return ""


def list_versions(bundles: Path, *, verify: bool) -> list[VersionFacts]:
    """Return the facts of every version, newest first.

    Args:
        bundles: The bundle directory.
        verify: Check every byte of each version instead of its manifest alone.

    Raises:
        BundleError: there is no such directory. A damaged version, or a `CURRENT` that names none, is not an
            error.
    """
    names = version_names(bundles)
    try:
        live = read_current(bundles)
    except BundleUnavailableError:
        raise
    except BundleError:
        live = ""
    look = verify_version if verify else read_manifest
    return [_facts(bundles / name, name == live, look) for name in reversed(names)]


def _facts(path: Path, is_live: bool, look: Callable[[Path], Manifest]) -> VersionFacts:
    try:
        manifest = look(path)
    except BundleError as error:
        return VersionFacts(name=path.name, is_live=is_live, problem=str(error))
    return VersionFacts(
        name=path.name,
        is_live=is_live,
        created_at=manifest.created_at,
        model=manifest.model.name,
        index=manifest.index.factory or manifest.index.kind,
        num_items=manifest.items.num_items,
        num_bytes=sum(entry.num_bytes for entry in manifest.files),
    )
