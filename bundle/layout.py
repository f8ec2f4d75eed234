"""Names of the files and folders of a bundle directory and of its versions."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

IdKind: TypeAlias = Literal["string", "int"]
"""Kind of the catalogue's item ids: text, or 64-bit signed integers."""

CURRENT = "CURRENT"
"""In the bundle directory: a file with the name of the live version."""

HIDDEN = "HIDDEN"
"""In the bundle directory: the ids of items that no answer may contain, whichever version is live."""

CANARY = "CANARY"
"""In the bundle directory: the version that servers load beside the live one."""

LIVE = "LIVE"
"""In the bundle directory: the list of the segments of live items; see `live_items/`."""

LIVE_FOLDER = "live"
"""In the bundle directory: the segments of live items."""

MIRROR_URL = ".mirror.url"
"""In a bundle directory that follows object storage: its address. Such a directory is not changed here."""

STAGING_PREFIX = ".staging-"
"""In the bundle directory: folders of publishers that are at work, or that died."""

BUILDING_PREFIX = ".building-"
"""In the bundle directory: finished stages of a running or an interrupted build."""

COLLECTION_PREFIX = ".collection-"
"""In the bundle directory: records of collections in Milvus that belong to no version, or not yet to one; see
`milvus/collections.py`."""

MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
INDEX = "items.faiss"
VECTORS = "vectors.npy"
GOLDEN = "golden.npz"
HISTORIES = "histories.npz"
"""Optional, for offline use: see `histories.py`."""
POPULAR = "popular.npy"
TITLES = "titles.utf8"
TITLES_OFFSETS = "titles.offsets.npy"
"""Optional, both or none: see `titles.py`."""
COLD_START = "cold_start.npz"
"""Optional: the fitted map from attributes to vectors, see `cold_start.py`."""
FOLD_IN = "fold_in.npz"
"""Optional: the likelihood by which events move such vectors, see `fold_in.py`."""

ID_KEYS = "item_ids.keys.npy"
ID_ROWS = "item_ids.rows.npy"
ID_VALUES = "item_ids.values.npy"
ID_TEXT = "item_ids.utf8"
ID_OFFSETS = "item_ids.offsets.npy"


class AttributeFiles(NamedTuple):
    """Names of the files of an attribute."""

    text: str
    """Its values as UTF-8, in ascending order."""
    text_offsets: str
    codes: str
    """The values of each item, as positions in that order."""
    starts: str
    rows: str
    """The rows of each value."""
    offsets: str | None
    """Start of each item's codes; None where every item has one code."""
    positions: str
    """Optional, where all values are numbers or all are dates: the numbers, or seconds since 1970."""


def attribute_files(place: int, *, is_multi_valued: bool) -> AttributeFiles:
    """Return the file names of the attribute at a position of the manifest's list."""
    stem = f"attribute_{place}"
    return AttributeFiles(
        text=f"{stem}.values.utf8",
        text_offsets=f"{stem}.values.offsets.npy",
        codes=f"{stem}.codes.npy",
        starts=f"{stem}.starts.npy",
        rows=f"{stem}.rows.npy",
        offsets=f"{stem}.offsets.npy" if is_multi_valued else None,
        positions=f"{stem}.positions.npy",
    )


IS_COLD = "is_cold"
"""Attribute of rebuilt versions: `true` for an item whose vector was not trained, but computed from the
vectors of items with common attributes."""

VERSION_PATTERN = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$"
"""Name of a version: UTC time of publication and a short hash of its content."""

FILE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Allowed names of a version's files: no folders, nothing hidden."""


def is_version_name(name: str) -> bool:
    """Return whether a name can be a version's. Other names, such as paths, never reach the file system."""
    return name.isascii() and not name.endswith("\n") and re.match(VERSION_PATTERN, name) is not None


def is_file_name(name: str) -> bool:
    """Return whether a version may contain a file of this name."""
    return name.isascii() and not name.endswith("\n") and re.match(FILE_NAME_PATTERN, name) is not None


def required_files(id_kind: IdKind, attributes_are_multi_valued: Sequence[bool] = ()) -> frozenset[str]:
    """Return the names of the files that a version must contain beside its manifest.

    Args:
        id_kind: Kind of the item ids.
        attributes_are_multi_valued: One entry for each catalogue attribute.
    """
    id_files = {ID_KEYS, ID_ROWS} | ({ID_TEXT, ID_OFFSETS} if id_kind == "string" else {ID_VALUES})
    of_attributes = set()
    for place, is_multi_valued in enumerate(attributes_are_multi_valued):
        files = attribute_files(place, is_multi_valued=is_multi_valued)
        of_attributes |= {name for name in files if name not in (None, files.positions)}
    return frozenset({ENCODER, INDEX, VECTORS, GOLDEN, POPULAR} | id_files | of_attributes)
