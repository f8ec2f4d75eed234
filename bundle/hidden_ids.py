"""Hidden items: a small file in the bundle directory with the ids of items that no answer may contain.

    bundles/HIDDEN    {"schema_version": 1, "id_kind": "string", "ids": ["SKU-1", …]}

The file is replaced as a whole. It outlives rebuilds and roll-backs, and may contain ids that the live
version does not have. Running servers poll it as they poll for a new version. Without the file nothing is
hidden.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from re4.bundle.layout import HIDDEN, IdKind
from re4.bundle.publishing.directory_lock import change_lock
from re4.bundle.safe_files import read_named
from re4.common.errors import BundleDamagedError, BundleError
from re4.common.files import replacing

SCHEMA_VERSION: Final = 1
MAX_NUM_HIDDEN: Final = 100_000
"""More items than this should leave the catalogue by a rebuild."""
MAX_BYTES: Final = 8 << 20


@dataclass(frozen=True, kw_only=True)
class HiddenIds:
    """Ids of hidden items."""

    id_kind: IdKind = "string"
    ids: tuple[Any, ...] = ()
    """Ascending and unique, all of the kind."""

    def of_kind(self, kind: IdKind) -> list[Any]:
        """Return the ids in a catalogue's kind: 123 and "123" are the same id, "0123" is not an integer."""
        if kind == self.id_kind:
            return list(self.ids)
        if kind == "string":
            return [str(id_) for id_ in self.ids]
        return [int(text) for text in self.ids if _is_canonical(text)]


def _is_canonical(text: str) -> bool:
    try:
        return str(int(text)) == text
    except ValueError:
        return False


def read_hidden(bundles: Path) -> HiddenIds:
    """Read the hidden ids.

    Raises:
        BundleError: no such directory, or the file was written by code with another schema version.
        BundleDamagedError: the file was not written by `write_hidden`.
        BundleUnavailableError: it cannot be read at this moment.
    """
    content = read_named(bundles, HIDDEN, max_bytes=MAX_BYTES)
    return HiddenIds() if content is None else parse_hidden(content, str(bundles / HIDDEN))


def change_hidden(
    bundles: Path, *, hide: Sequence[Any] = (), unhide: Sequence[Any] = (), kind: IdKind
) -> tuple[HiddenIds, HiddenIds]:
    """Hide items and show others again, in one replacement of the file.

    Args:
        bundles: The bundle directory.
        hide: Ids to hide; ids that are hidden already stay hidden.
        unhide: Ids to show again; ids that are not hidden are ignored.
        kind: Kind of the ids.

    Returns:
        The hidden ids before and after.

    Raises:
        BundleError: too many hidden ids, the directory cannot be written, or the present file is damaged. The
            file is unchanged.
    """
    try:
        with change_lock(bundles):
            before = read_hidden(bundles)
            ids = sorted({*before.of_kind(kind), *hide}.difference(unhide))
            now = HiddenIds(id_kind=kind, ids=tuple(ids))
            if len(ids) > MAX_NUM_HIDDEN:
                raise BundleError(
                    f"{bundles / HIDDEN}: {len(ids):,} items would be hidden, at most {MAX_NUM_HIDDEN:,} "
                    "can be: leave items out of the catalogue, and rebuild"
                )
            write_hidden(bundles, now)
    except OSError as error:
        raise BundleError(f"{bundles / HIDDEN}: cannot be written ({error})") from error
    return before, now


def write_hidden(bundles: Path, hidden: HiddenIds) -> None:
    """Replace the file."""
    value = {"schema_version": SCHEMA_VERSION, "id_kind": hidden.id_kind, "ids": list(hidden.ids)}
    # Of an id with a lone surrogate, too: the file may hold one, and no catalogue does.
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    if len(content) > MAX_BYTES:
        raise BundleError(f"{bundles / HIDDEN}: would be {len(content):,} bytes, {MAX_BYTES:,} are allowed")
    with replacing(bundles / HIDDEN) as part:
        part.write_bytes(content)


def parse_hidden(content: bytes, where: str) -> HiddenIds:
    """Return the hidden ids that a file holds; the errors are those of `read_hidden`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleDamagedError(f"{where}: not JSON ({error}). {_ADVICE}") from None
    if not isinstance(value, dict) or value.keys() != {"schema_version", "id_kind", "ids"}:
        raise BundleDamagedError(f"{where}: not a list of hidden items. {_ADVICE}")
    if value["schema_version"] != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema_version is {value['schema_version']!r:.20}, this code reads {SCHEMA_VERSION}. "
            "Run the code that wrote it"
        )
    kind, ids = value["id_kind"], value["ids"]
    wanted: type = {"string": str, "int": int}.get(kind, type(None)) if isinstance(kind, str) else type(None)
    if not isinstance(ids, list) or len(ids) > MAX_NUM_HIDDEN or _any_other(ids, wanted):
        raise BundleDamagedError(
            f"{where}: ids are not up to {MAX_NUM_HIDDEN:,} of kind {kind!r:.20}. {_ADVICE}"
        )
    return HiddenIds(id_kind=kind, ids=tuple(ids))


def _any_other(ids: Iterable[Any], wanted: type) -> bool:
    return any(type(id_) is not wanted for id_ in ids) or wanted is type(None)


_ADVICE: Final = (
    "Put back a copy, or remove the file and hide the items again; until then servers keep the last good one"
)
