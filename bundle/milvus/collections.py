"""The collections of a bundle directory: made before their version, named after it, dropped with it.

A job writes the names of its collections into a locked folder `.collection-<random>` before it makes them.
The lock ends with its process. So the next job, and every pruning, drops what a killed job left, and nothing
of other directories that use the same server. A version's collection is dropped after its folder has lost
its name.
"""

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self

import numpy as np

from re4.bundle.layout import COLLECTION_PREFIX, VECTORS, is_version_name
from re4.bundle.manifest import CollectionInfo, IndexInfo, Manifest
from re4.bundle.milvus.address import MilvusAddress
from re4.bundle.milvus.server import MilvusServer
from re4.common.errors import BundleError, BundleMismatchError, BundleUnavailableError, Re4Error
from re4.common.file_lock import LOCK, try_lock, unlock
from re4.common.files import write_json

_log = logging.getLogger(__name__)

VECTORS_SHA256: Final = "vectors_sha256"
"""In the description of a collection: the SHA-256 of the version's file of vectors."""
_RECORD: Final = "collections.json"
_PREFIX: Final = "re4_"
_NUM_SAMPLED_ROWS: Final = 64


class NewCollection:
    """The collection of a version that is being made; the end of its block drops it, if not published."""

    def __init__(self, bundles: Path, address: MilvusAddress) -> None:
        """Make nothing yet."""
        self.address = address
        self.name = f"{_PREFIX}building_{secrets.token_hex(8)}"
        self._bundles = bundles
        self._stack = ExitStack()
        self._record = Path()
        self.server: MilvusServer

    def __enter__(self) -> Self:
        """Drop what killed jobs left, connect, and record the name.

        Raises:
            BundleUnavailableError: the server does not answer.
        """
        drop_orphans(self._bundles)
        with ExitStack() as stack:
            self.server = stack.enter_context(MilvusServer(self.address))
            # Not removed as the remains of a dead process: those are kept until the collection is dropped.
            folder = self._bundles / f"{COLLECTION_PREFIX}{secrets.token_hex(8)}"
            folder.mkdir(parents=True)
            lock = try_lock(folder)
            if lock is None:
                raise BundleError(f"{folder}: cannot be locked")
            self._record = folder / _RECORD
            stack.callback(unlock, folder, lock)
            _write_record(self._record, self.address, [self.name])
            stack.callback(self._drop_unpublished)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def publish_as(self, version: str, index: IndexInfo) -> IndexInfo:
        """Rename the collection after its version, and return the facts of the index under that name."""
        assert index.collection is not None
        name = collection_name(version)
        _write_record(self._record, self.address, [self.name, name])
        self.server.rename(self.name, name)
        self.name = name
        return index.model_copy(update={"collection": index.collection.model_copy(update={"name": name})})

    def _drop_unpublished(self) -> None:
        """Drop the collection, unless it belongs to a version; a failure leaves that to the next pruning."""
        try:
            _, names = _read_record(self._record)
            _drop_recorded(self._bundles, self._record, names, self.server)
        except BundleUnavailableError as error:
            _log.warning(f"the collection {self.name} is dropped by the next pruning: {error}")


def collection_name(version: str) -> str:
    """Return the name of a version's collection."""
    return f"{_PREFIX}{version.replace('-', '_')}"


def record_for_dropping(bundles: Path, collection: CollectionInfo) -> None:
    """Record that a collection's version is about to be removed: `drop_orphans` drops it."""
    folder = bundles / f"{COLLECTION_PREFIX}{secrets.token_hex(8)}"
    folder.mkdir()
    _write_record(folder / _RECORD, MilvusAddress.parse(collection.address), [collection.name])


def drop_orphans(bundles: Path) -> list[str]:
    """Drop the recorded collections of dead jobs and of removed versions.

    Returns:
        The names of their records that could not be dropped, because their server does not answer; a later
        call tries them again.
    """
    left = []
    for folder in sorted(bundles.glob(f"{COLLECTION_PREFIX}*")):
        lock = None if folder.is_symlink() else try_lock(folder)
        if lock is None:
            continue  # a job is at work
        try:
            record = folder / _RECORD
            if record.exists():
                address, names = _read_record(record)
                with MilvusServer(address) as server:
                    _drop_recorded(bundles, record, names, server)
            else:
                (folder / LOCK).unlink()
        except Re4Error as error:
            left.append(folder.name)
            _log.warning(f"{folder}: its collections are dropped by the next pruning: {error}")
        finally:
            unlock(folder, lock)
    return left


def check_collection(path: Path, manifest: Manifest) -> None:
    """Check that the collection of a version is there and holds its vectors; load it where it is not loaded.

    Raises:
        BundleMismatchError: it is missing, incomplete, or of other vectors.
        BundleUnavailableError: the server does not answer: no verdict.
    """
    collection = manifest.index.collection
    if collection is None:
        return
    where = f"{path}: the collection {collection.name} at {collection.address}"
    num_items, embedding_dim = manifest.items.num_items, manifest.model.embedding_dim
    with MilvusServer(MilvusAddress.parse(collection.address)) as server:
        facts = server.facts(collection.name)
        if facts is None:
            raise BundleMismatchError(f"{where} is not there. Publish the version again, or roll back")
        found = (facts.embedding_dim, facts.metric)
        if found != (embedding_dim, "IP"):
            raise BundleMismatchError(
                f"{where} has {found[0]} dimensions and the metric {found[1] or 'of no index'}; the manifest "
                f"states {embedding_dim}, and IP (inner product) is needed"
            )
        sha256 = next(entry.sha256 for entry in manifest.files if entry.name == VECTORS)
        if facts.description.get(VECTORS_SHA256) != sha256:
            raise BundleMismatchError(f"{where} was not made from the item vectors of this version")
        if missing := sorted(set(collection.fields) - facts.fields):
            raise BundleMismatchError(f"{where} lacks the fields {', '.join(missing)}")
        if not facts.is_loaded:
            server.load(collection.name)
        num_rows = server.num_rows(collection.name)
        sampled = np.unique(np.linspace(0, num_items - 1, _NUM_SAMPLED_ROWS).astype(np.int64)).tolist()
        if num_rows != num_items or server.num_rows(collection.name, sampled) != len(sampled):
            raise BundleMismatchError(
                f"{where} has {num_rows:,} rows, and not the {num_items:,} of the version. Publish it again"
            )


def _drop_recorded(bundles: Path, record: Path, names: list[str], server: MilvusServer) -> None:
    """Drop the collections of a record that belong to no version, then remove the record."""
    kept = {collection_name(path.name) for path in bundles.iterdir() if is_version_name(path.name)}
    for name in names:
        if name not in kept:
            server.drop(name)
    record.unlink()
    (record.parent / LOCK).unlink(missing_ok=True)


def _write_record(path: Path, address: MilvusAddress, names: list[str]) -> None:
    write_json(path, {"address": str(address), "names": names})


def _read_record(record: Path) -> tuple[MilvusAddress, list[str]]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return MilvusAddress.parse(found["address"]), [str(name) for name in found["names"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{record}: cannot be read ({error})") from error


@contextmanager
def new_collection(bundles: Path, address: MilvusAddress | None) -> Iterator[NewCollection | None]:
    """Give a new collection; None where the index is not in Milvus."""
    if address is None:
        yield None
        return
    with NewCollection(bundles, address) as collection:
        yield collection
