"""Live items in object storage: immutable pieces of the segments, and one object that lists them.

    LIVE                       {"schema_version": 1, "live": …, "pieces": {SEGMENT: [{"name": …}, …]}}
    live/SEGMENT/START-SHA256  a piece of a segment, which is never changed

`live` is the content of the local `LIVE`. A piece has a name that follows from its content, so that no
publisher can change what the list of another one names. A push writes only the bytes that are new.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from re4.bundle.layout import LIVE, LIVE_FOLDER
from re4.bundle.live_items.live_list import SEGMENT_PATTERN, LiveList, parse_live_list
from re4.bundle.manifest import first_problem
from re4.bundle.remote.object_store import ObjectStore, StoredObject
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.files import sync

SCHEMA_VERSION: Final = 1
_MAX_PIECES: Final = 64
"""A segment of more pieces is written again as one."""
_MIN_AGE_S: Final = 3600.0
"""Objects that no list names are removed after so long: a publisher may be about to list a newer one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Piece(_Strict):
    """A part of a segment."""

    num_bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def name(self, segment: str, start: int) -> str:
        """Return the name of its object."""
        return f"{LIVE_FOLDER}/{segment}/{start:010d}-{self.sha256[:32]}"


class StoredLive(_Strict):
    """The object `LIVE`."""

    schema_version: int = SCHEMA_VERSION
    live: str = ""
    """Content of the local file."""
    pieces: dict[Annotated[str, Field(pattern=SEGMENT_PATTERN)], tuple[Piece, ...]] = {}

    def names(self) -> set[str]:
        """Return the names of the objects of all pieces."""
        return {
            piece.name(segment, start)
            for segment, pieces in self.pieces.items()
            for start, piece in _with_starts(pieces)
        }


def parse_stored_live(found: StoredObject | None, url: str) -> tuple[StoredLive, LiveList]:
    """Return the object `LIVE`, and the local list in it.

    Raises:
        BundleDamagedError: it was not written by `write_live_items`.
        BundleError: it was written by code with another schema version.
    """
    if found is None:
        return StoredLive(), LiveList()
    try:
        stored = StoredLive.model_validate_json(found.content)
    except ValidationError as error:
        raise BundleDamagedError(f"{url}/{LIVE}: {first_problem(error)}") from None
    if stored.schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{url}/{LIVE}: schema_version is {stored.schema_version}, this code reads {SCHEMA_VERSION}"
        )
    live = parse_live_list(stored.live.encode("ascii", "replace"), f"{url}/{LIVE}")
    for segment in live.segments:
        if sum(piece.num_bytes for piece in stored.pieces.get(segment.name, ())) != segment.num_bytes:
            raise BundleDamagedError(
                f"{url}/{LIVE}: the pieces of {segment.name} are not {segment.num_bytes}"
            )
    return stored, live


def write_pieces(bundles: Path, content: bytes, store: ObjectStore, before: StoredLive) -> StoredLive:
    """Write the pieces that are not there yet, and return what the object `LIVE` shall hold.

    Args:
        bundles: The local bundle directory.
        content: Of its file `LIVE`.
        store: Where to write.
        before: The present object `LIVE`.
    """
    pieces = {}
    for segment in parse_live_list(content, str(bundles / LIVE)).segments:
        path = bundles / LIVE_FOLDER / segment.name
        known = before.pieces.get(segment.name, ())
        start = sum(piece.num_bytes for piece in known)
        with path.open("rb") as file:
            is_usable = len(known) < _MAX_PIECES and start <= segment.num_bytes
            if not (is_usable and all(_holds(file.read(piece.num_bytes), piece) for piece in known)):
                known, start = (), 0
            file.seek(start)
            rest = file.read(segment.num_bytes - start)
        if start + len(rest) != segment.num_bytes:
            raise BundleDamagedError(f"{path}: {start + len(rest)} bytes, {segment.num_bytes} are listed")
        if rest:
            piece = Piece(num_bytes=len(rest), sha256=hashlib.sha256(rest).hexdigest())
            store.put(piece.name(segment.name, start), rest)
            known = (*known, piece)
        pieces[segment.name] = known
    return StoredLive(live=content.decode("ascii"), pieces=pieces)


def read_pieces(
    store: ObjectStore, stored: StoredLive, live: LiveList, bundles: Path, known: LiveList
) -> None:
    """Make the local segments of a list, with the bytes that are missing.

    Args:
        store: Where to read.
        stored: Names the pieces.
        live: The list.
        bundles: The local bundle directory.
        known: Its present list. Bytes of a segment beyond the length there do not count.

    Raises:
        BundleDamagedError: a piece is not the one of the list.
    """
    folder = bundles / LIVE_FOLDER
    folder.mkdir(exist_ok=True)
    lengths = {segment.name: segment.num_bytes for segment in known.segments}
    for segment in live.segments:
        path = folder / segment.name
        have = min(lengths.get(segment.name, 0), path.stat().st_size if path.exists() else 0)
        if have == segment.num_bytes:
            continue
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(have)
            for start, piece in _with_starts(stored.pieces[segment.name]):
                if start + piece.num_bytes > have:
                    content = b"".join(store.chunks(piece.name(segment.name, start), 0, piece.num_bytes))
                    if not _holds(content, piece):
                        where = f"{store.url}/{piece.name(segment.name, start)}"
                        raise BundleDamagedError(f"{where}: its content is not that of {LIVE}")
                    file.seek(start)
                    file.write(content)
            file.flush()
        sync(path)
    sync(folder)


def remove_unlisted(bundles: Path, live: LiveList) -> None:
    """Remove local segments that are not in the list."""
    listed = {segment.name for segment in live.segments}
    for path in (bundles / LIVE_FOLDER).iterdir():
        if path.name not in listed:
            path.unlink()


def remove_old_pieces(store: ObjectStore, *listed: StoredLive) -> None:
    """Remove objects that no list names and that are old, by the clock of the storage."""
    wanted = set().union(*(each.names() for each in listed))
    store.delete([name for name in store.old_names(f"{LIVE_FOLDER}/", _MIN_AGE_S) if name not in wanted])


def _with_starts(pieces: tuple[Piece, ...]) -> Iterator[tuple[int, Piece]]:
    start = 0
    for piece in pieces:
        yield start, piece
        start += piece.num_bytes


def _holds(content: bytes, piece: Piece) -> bool:
    return len(content) == piece.num_bytes and hashlib.sha256(content).hexdigest() == piece.sha256
