"""Which versions a bundle directory holds, and what each says about itself.

Knows nothing about which of them should be live or be kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from re4.bundle.layout import is_version_name
from re4.bundle.manifest import Manifest
from re4.bundle.publishing.current import read_current
from re4.bundle.safe_files import names_in, open_folder
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """One version as its manifest describes it; only `name` and `problem` where that cannot be read."""

    name: str
    is_live: bool
    created_at: str = ""
    """ISO 8601, UTC."""
    model: str = ""
    index: str = ""
    num_items: int = 0
    num_bytes: int = 0
    """Of all files but the manifest."""
    problem: str = ""
    """Why the version cannot be used; empty where nothing wrong was seen."""


def version_names(bundles: Path) -> list[str]:
    """Names of the versions, oldest first: real folders that are named like one.

    Raises:
        BundleError: no such directory.
    """
    with open_folder(bundles) as folder:
        names = sorted(name for name in names_in(folder) if is_version_name(name))
    return [name for name in names if (bundles / name).is_dir() and not (bundles / name).is_symlink()]


def list_versions(bundles: Path, *, verify: bool) -> list[VersionFacts]:
    """Every version, newest first.

    Args:
        bundles: The bundle directory.
        verify: Check every byte of each version, instead of reading its manifest alone.

    Raises:
        BundleError: no such directory. A damaged version, or a `CURRENT` that names none, is no error.
    """
    names = version_names(bundles)
    try:
        live = read_current(bundles)
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
