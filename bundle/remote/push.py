"""Pushing a bundle directory to object storage: the files of the live version first, `CURRENT` last.

A version becomes visible by one conditional put of `CURRENT`: it succeeds only if `CURRENT` is still the one
that was read before the files were written. So of two publishers at the same time one is refused, and a push
that is killed leaves at most objects that no `CURRENT` names.
"""

import json
import logging
from pathlib import Path
from typing import Any, Final

from re4.bundle.layout import CURRENT, HIDDEN, LIVE, LIVE_FOLDER, MANIFEST, is_version_name
from re4.bundle.live_items.live_list import read_live_list
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.version_lease import VersionLease
from re4.bundle.remote.object_store import ObjectStore, StoredObject
from re4.bundle.verify import verify_version
from re4.common.errors import BundleBusyError, BundleError

_log = logging.getLogger(__name__)

_SMALL_FILES: Final = (HIDDEN, LIVE)


def push(bundles: Path, store: ObjectStore, *, num_kept: int | None = None) -> str:
    """Write the live version, hidden items and live items, and return the version's name.

    Args:
        bundles: The local bundle directory.
        store: Where to write.
        num_kept: Versions older than the live one that stay there; None to remove none.

    Raises:
        BundleError: the local version cannot be used, or the live items there are newer than these.
        BundleBusyError: another publisher changed the same file meanwhile. Nothing of this push is live.
        BundleUnavailableError: the storage cannot be used at this moment.
    """
    current = store.get(CURRENT)
    before = {name: store.get(name) for name in _SMALL_FILES}
    version = live_version(bundles)
    lease = VersionLease(version)
    try:
        manifest = verify_version(version)
        for entry in manifest.files:
            # A version's name follows from its content, and an object appears whole or not at all.
            if store.size(f"{version.name}/{entry.name}") != entry.num_bytes:
                store.put(f"{version.name}/{entry.name}", version / entry.name)
        store.put(f"{version.name}/{MANIFEST}", (version / MANIFEST).read_bytes())
    finally:
        lease.release()
    _push_live_items(bundles, store, before[LIVE])
    _replace(store, HIDDEN, _content(bundles / HIDDEN), before[HIDDEN])
    _replace(store, CURRENT, f"{version.name}\n".encode("ascii"), current)
    if num_kept is not None:
        _remove_old(store, version.name, num_kept)
    return version.name


def _push_live_items(bundles: Path, store: ObjectStore, before: StoredObject | None) -> None:
    """Write the segments of live items, then their list."""
    content = _content(bundles / LIVE)
    live = read_live_list(bundles)
    there: dict[str, Any] = {} if before is None else json.loads(before.content)
    if live.sequence < there.get("sequence", 0):
        raise BundleError(
            f"{store.url}/{LIVE} is at change {there['sequence']}, {bundles / LIVE} at {live.sequence}: the "
            "live items there are of another directory, or newer. Mirror them to here first, or remove them"
        )
    for segment in live.segments:
        name = f"{LIVE_FOLDER}/{segment.name}"
        size = store.size(name)
        if size is None or size < segment.num_bytes:
            store.put(name, (bundles / LIVE_FOLDER / segment.name).read_bytes()[: segment.num_bytes])
    _replace(store, LIVE, content, before)
    listed = {segment.name for segment in live.segments} | {
        each["name"] for each in there.get("segments", ())
    }
    store.delete([name for name in store.names(f"{LIVE_FOLDER}/") if name.rpartition("/")[2] not in listed])


def _replace(store: ObjectStore, name: str, content: bytes | None, before: StoredObject | None) -> None:
    if content is None or (before is not None and before.content == content):
        return
    if not store.put_if_unchanged(name, content, before):
        raise BundleBusyError(
            f"{store.url}/{name} was changed while this push ran: another publisher is at work. Look which "
            "version shall be live, and push again"
        )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _remove_old(store: ObjectStore, live: str, num_kept: int) -> None:
    """Remove the versions of a second before that of the live one, but the newest of them."""
    objects: dict[str, list[str]] = {}
    for name in store.names(""):
        version = name.split("/")[-2] if "/" in name else ""
        if is_version_name(version) and version.partition("-")[0] < live.partition("-")[0]:
            objects.setdefault(version, []).append(name)
    for version in sorted(objects)[: max(0, len(objects) - num_kept)]:
        _log.info(f"{store.url}/{version}: removed")
        store.delete(sorted(objects[version], key=lambda name: not name.endswith(MANIFEST)))
