"""Pushing a bundle directory to object storage: the files of versions first, `CURRENT` last.

A version becomes visible by one conditional put of `CURRENT`: it succeeds only if `CURRENT` is still the one
that was read before the files were written. So of two publishers at the same time one is refused, and a push
that is killed leaves at most objects that no `CURRENT` names.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import Final, NoReturn

from re4.bundle.layout import CANARY, CURRENT, HIDDEN, LIVE, MANIFEST, is_version_name
from re4.bundle.live_items.live_list import parse_live_list
from re4.bundle.publishing.canary import read_canary
from re4.bundle.publishing.current import live_version
from re4.bundle.publishing.version_lease import VersionLease
from re4.bundle.remote.live_pieces import parse_stored_live, remove_old_pieces, write_pieces
from re4.bundle.remote.object_store import ObjectStore, StoredObject
from re4.bundle.verify import verify_version
from re4.common.errors import BundleBusyError, BundleError, BundleUnavailableError

_log = logging.getLogger(__name__)

REPLACED_FILES: Final = (HIDDEN, LIVE, CURRENT, CANARY)
"""Files of a bundle directory that are replaced as a whole, in the order of their writing."""

State = Mapping[str, StoredObject | None]


def read_state(store: ObjectStore) -> State:
    """Return the objects of `REPLACED_FILES`."""
    return {name: store.get(name) for name in REPLACED_FILES}


def push(bundles: Path, store: ObjectStore, *, num_kept: int | None = None) -> str:
    """Write the live version, the canary, hidden items and live items, and return the live version's name.

    Args:
        bundles: The local bundle directory.
        store: Where to write.
        num_kept: Versions older than the live one that stay there; None to remove none.

    Raises:
        BundleError: the local version cannot be used, or the live items there are newer than these.
        BundleBusyError: another publisher changed the same file meanwhile. Nothing of this push is live.
        BundleUnavailableError: the storage cannot be used at this moment.
    """
    before = read_state(store)
    version = live_version(bundles)
    canary = read_canary(bundles)
    contents = read_contents(bundles) | {CURRENT: f"{version.name}\n".encode("ascii")}
    push_version(version, store)
    if canary is not None:
        push_version(bundles / canary.version, store)
    for name, content in contents.items():
        push_file(bundles, name, content, store, before)
    if num_kept is not None:
        remove_versions(store, older_versions(store, version.name, num_kept))
    return version.name


def follow_and_push(
    bundles: Path, store: ObjectStore, interval_s: float, *, num_kept: int | None = None
) -> NoReturn:
    """Push at once, and again whenever the directory has changed; storage that is away is tried again.

    Raises:
        BundleError: as `push`.
    """
    pushed: dict[str, bytes | None] = {}
    while True:
        found = read_contents(bundles)
        if found != pushed:
            try:
                push(bundles, store, num_kept=num_kept)
                pushed = found
            except BundleUnavailableError as error:
                _log.error(f"the push is tried again in {interval_s:g} s: {error}")
        sleep(interval_s)


def push_version(version: Path, store: ObjectStore) -> None:
    """Write the files of a version that are not there yet, and its manifest last."""
    lease = VersionLease(version)
    try:
        for entry in verify_version(version).files:
            # A version's name follows from its content, and an object appears whole or not at all.
            if store.size(f"{version.name}/{entry.name}") != entry.num_bytes:
                store.put(f"{version.name}/{entry.name}", version / entry.name)
        store.put(f"{version.name}/{MANIFEST}", (version / MANIFEST).read_bytes())
    finally:
        lease.release()


def read_contents(bundles: Path) -> dict[str, bytes | None]:
    """Return the contents of `REPLACED_FILES` of a local directory; None for a file that is not there."""
    paths = {name: bundles / name for name in REPLACED_FILES}
    return {name: path.read_bytes() if path.exists() else None for name, path in paths.items()}


def push_file(bundles: Path, name: str, content: bytes | None, store: ObjectStore, before: State) -> None:
    """Replace the object of one of `REPLACED_FILES`, if it is still what was read before.

    Raises:
        BundleError: the live items there are newer than these.
        BundleBusyError: another publisher changed it meanwhile.
    """
    if content is None and name == CANARY and before[name] is not None:
        content = b""  # no storage removes an object under a condition
    if name == LIVE:
        _push_live_items(bundles, content, store, before[LIVE])
    elif content is not None:
        _replace(store, name, content, before[name])


def _push_live_items(
    bundles: Path, content: bytes | None, store: ObjectStore, before: StoredObject | None
) -> None:
    """Write the pieces of live items, then their list."""
    there, live_there = parse_stored_live(before, store.url)
    if there.live.encode() == (content or b""):
        return
    sequence = 0 if content is None else parse_live_list(content, str(bundles / LIVE)).sequence
    if sequence < live_there.sequence:
        raise BundleError(
            f"{store.url}/{LIVE} is at change {live_there.sequence}, {bundles / LIVE} at {sequence}: the "
            "live items there are of another directory, or newer. Mirror them to here first, or remove them"
        )
    if content is None:
        return
    pushed = write_pieces(bundles, content, store, there)
    _replace(store, LIVE, pushed.model_dump_json().encode("ascii"), before)
    remove_old_pieces(store, pushed, there)


def _replace(store: ObjectStore, name: str, content: bytes, before: StoredObject | None) -> None:
    if before is not None and before.content == content:
        return
    if not store.put_if_unchanged(name, content, before):
        raise BundleBusyError(
            f"{store.url}/{name} was changed meanwhile: another publisher is at work. Look which version "
            "shall be live, and start again"
        )


def stored_versions(store: ObjectStore) -> dict[str, list[str]]:
    """Return the names of the objects of each version that has a manifest, the manifest first."""
    objects: dict[str, list[str]] = {}
    for name in store.names(""):
        version = name.split("/")[-2] if "/" in name else ""
        if is_version_name(version):
            objects.setdefault(version, []).append(name)
    return {
        version: sorted(names, key=lambda name: not name.endswith(MANIFEST))
        for version, names in sorted(objects.items())
        if any(name.endswith(MANIFEST) for name in names)
    }


def older_versions(store: ObjectStore, live: str, num_kept: int) -> list[str]:
    """Return the versions of a second before that of the live one, but the newest of them."""
    older = [name for name in stored_versions(store) if name.partition("-")[0] < live.partition("-")[0]]
    return older[: max(0, len(older) - num_kept)]


def remove_versions(store: ObjectStore, versions: list[str]) -> None:
    """Remove versions, the manifest of each first."""
    stored = stored_versions(store) if versions else {}
    for version in versions:
        _log.info(f"{store.url}/{version}: removed")
        store.delete(stored.get(version, []))
