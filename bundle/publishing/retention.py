"""Pruning: the removal of old versions.

Only versions older than the live one are removed: a newer one may be about to go live, or may be the one that
was rolled back. A version that a server still serves stays as well. A version first loses its name, by one
rename, and then its files: if pruning is killed at any instant, every named version is complete, and the next
pruning removes the rest. Collections in Milvus are dropped with their versions. A mirror is not pruned here:
its collections belong to the directory that was pushed.
"""

import secrets
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Final

from re4.bundle.layout import BUILDING_PREFIX
from re4.bundle.milvus.collections import drop_orphans, record_for_dropping
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.directory_lock import change_lock
from re4.bundle.publishing.version_lease import is_served
from re4.bundle.publishing.versions import publication, version_names
from re4.bundle.verify import read_manifest, verify_version
from re4.common.errors import BundleError, BundleUnavailableError
from re4.common.file_lock import remove_unlocked

PRUNED_PREFIX: Final = ".pruned-"
"""In the bundle directory: versions that lost their name and are removed."""

_SWAP: Final = timedelta(seconds=1)
"""The publisher of a version that is older than the live one by less may be about to make it live."""


def prunable(bundles: Path, *, num_kept: int) -> list[str]:
    """Return the names of the versions to remove, oldest first.

    Args:
        bundles: The bundle directory.
        num_kept: Number of versions older than the live one that stay, the newest of them.

    Raises:
        BundleError: the live version is unknown or damaged: then an older one may be needed.
    """
    live = verify_version(live_version(bundles)).version
    limit = publication(bundles / live)[0] - _SWAP
    older = [name for name in version_names(bundles) if publication(bundles / name)[0] < limit]
    unwanted = older[: max(0, len(older) - num_kept)]
    return [name for name in unwanted if not is_served(bundles / name)]


def prune(bundles: Path, *, num_kept: int) -> list[str]:
    """Remove old versions, and the remains of killed prunings and interrupted builds.

    A collection whose server does not answer is dropped by a later pruning; that is logged.

    Returns:
        Names of the removed versions, oldest first.

    Raises:
        BundleError: as `prunable`; or a version cannot be removed, after those before it were.
    """
    try:
        with change_lock(bundles):
            names = prunable(bundles, num_kept=num_kept)
            for name in names:
                # With the random part, a version of the same name can be put back meanwhile.
                (bundles / name).rename(bundles / f"{PRUNED_PREFIX}{secrets.token_hex(4)}-{name}")
            for left in bundles.glob(f"{PRUNED_PREFIX}*"):
                _record_collection(bundles, left)
                shutil.rmtree(left)
            for left in bundles.glob(f"{BUILDING_PREFIX}*"):
                remove_unlocked(left)
        drop_orphans(bundles)
    except OSError as error:
        raise BundleError(f"{bundles}: cannot prune ({error})") from error
    return names


def _record_collection(bundles: Path, pruned: Path) -> None:
    """Record the collection of a version that is being removed, where it has one."""
    try:
        manifest = read_manifest(pruned)
    except BundleUnavailableError:
        raise
    except BundleError:  # its files are partly removed, or it was damaged
        return
    if manifest.index.collection is not None:
        record_for_dropping(bundles, manifest.index.collection)
