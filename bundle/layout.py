"""Names on disk: what a bundle directory and one of its versions are made of.

Knows names only: nothing here opens a file.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

IdKind: TypeAlias = Literal["string", "int"]
"""What the catalogue's item ids are: text, or 64-bit signed integers."""

CURRENT = "CURRENT"
"""In the bundle directory: one line, the name of the live version."""

HIDDEN = "HIDDEN"
"""In the bundle directory: the ids of items that no answer may hold, whichever version is live."""

STAGING_PREFIX = ".staging-"
"""In the bundle directory: folders of publishers that are at work, or that died at work."""

BUILDING_PREFIX = ".building-"
"""In the bundle directory: finished stages of a build that is at work, or that was interrupted."""

MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
INDEX = "items.faiss"
VECTORS = "vectors.npy"
GOLDEN = "golden.npz"
HISTORIES = "histories.npz"
"""Optional, and for offline use: see `histories.py`."""
POPULAR = "popular.npy"

ID_KEYS = "item_ids.keys.npy"
ID_ROWS = "item_ids.rows.npy"
ID_VALUES = "item_ids.values.npy"
ID_TEXT = "item_ids.utf8"
ID_OFFSETS = "item_ids.offsets.npy"


class AttributeFiles(NamedTuple):
    """Names of the files of one catalogue attribute."""

    text: str
    """UTF-8 of its values, in ascending order."""
    text_offsets: str
    codes: str
    """Each item's values, as places in that order."""
    starts: str
    rows: str
    """The rows that have each value."""
    offsets: str | None
    """Where each item's codes begin; None where every item has one."""


def attribute_files(place: int, *, is_multi_valued: bool) -> AttributeFiles:
    """The files of the attribute at a place of the manifest's list."""
    stem = f"attribute_{place}"
    return AttributeFiles(
        text=f"{stem}.values.utf8",
        text_offsets=f"{stem}.values.offsets.npy",
        codes=f"{stem}.codes.npy",
        starts=f"{stem}.starts.npy",
        rows=f"{stem}.rows.npy",
        offsets=f"{stem}.offsets.npy" if is_multi_valued else None,
    )


IS_COLD = "is_cold"
"""Attribute of versions that were rebuilt: `true` for an item whose vector was not trained, but made from the
vectors of items that have something in common with it."""

VERSION_PATTERN = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$"
"""A version's name: UTC time of publishing, then a short hash of what was published."""

FILE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names that a version's files may have: no folders, nothing hidden."""


def is_version_name(name: str) -> bool:
    """Whether a name can be a version's: anything else, such as a path, never reaches the file system."""
    return name.isascii() and not name.endswith("\n") and re.match(VERSION_PATTERN, name) is not None


def is_file_name(name: str) -> bool:
    """Whether a version may hold a file of this name."""
    return name.isascii() and not name.endswith("\n") and re.match(FILE_NAME_PATTERN, name) is not None


def required_files(id_kind: IdKind, attributes_are_multi_valued: Sequence[bool] = ()) -> frozenset[str]:
    """The files that a version must hold beside its manifest.

    Args:
        id_kind: What the item ids are.
        attributes_are_multi_valued: One entry for each catalogue attribute.
    """
    id_files = {ID_KEYS, ID_ROWS} | ({ID_TEXT, ID_OFFSETS} if id_kind == "string" else {ID_VALUES})
    of_attributes = {
        name
        for place, is_multi_valued in enumerate(attributes_are_multi_valued)
        for name in attribute_files(place, is_multi_valued=is_multi_valued)
        if name is not None
    }
    return frozenset({ENCODER, INDEX, VECTORS, GOLDEN, POPULAR} | id_files | of_attributes)
