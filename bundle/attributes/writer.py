"""Writing of the attributes of a version: codes by item, and rows by value.

    values    the distinct values as UTF-8, ascending, and the start of each              [V], [V + 1]
    codes     the value of each item as its position in that order, in 1, 2 or 4 bytes;
              the number of values for an item without a value                            [N]
              multi-valued: one item after another, and the start of each item            [E], [N + 1]
    rows      the rows of each value, ascending, and the start of each value              [E], [V + 1]
    positions the values as numbers, or dates as seconds since 1970; only where all are   [V]

Codes give the values of an item. Rows give the items of a value without a scan of all items. Positions give
the values of a range.

Legend: N items, E entries (one per value of each item), V values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.columns import MAX_VALUE_BYTES, CodedColumn, Column, code_column, code_type
from re4.bundle.layout import attribute_files
from re4.bundle.manifest import MAX_NUM_ATTRIBUTES, AttributeInfo
from re4.common.attribute_values import positions
from re4.common.errors import BundleError

_CHUNK_ITEMS: Final = 262_144


def write_attributes(
    folder: Path, attributes: Mapping[str, Column | Callable[[], CodedColumn]], num_items: int
) -> tuple[AttributeInfo, ...]:
    """Write the attributes of a version's items into its folder.

    Args:
        folder: The version's folder.
        attributes: The column of each attribute by its name, in row order: plain values (see `code_column`),
            or a function that returns the coded column, so that one column at a time is in memory.
        num_items: N.

    Returns:
        The attributes for the manifest (`ItemsInfo.attributes`).

    Raises:
        BundleError: a name or value cannot be stored, no item has a value of an attribute, or a column has
            another length than the catalogue.
    """
    if len(attributes) > MAX_NUM_ATTRIBUTES:
        raise BundleError(f"{len(attributes)} attributes given, at most {MAX_NUM_ATTRIBUTES} are allowed")
    infos = []
    for place, (name, column) in enumerate(attributes.items()):
        if not 1 <= len(name) <= 200:
            raise BundleError(f"attribute {name!r:.60}: a name has 1 to 200 characters, this has {len(name)}")
        coded = column() if callable(column) else code_column(name, column)
        infos.append(_write(folder, place, name, coded, num_items))
    return tuple(infos)


def _write(folder: Path, place: int, name: str, column: CodedColumn, num_items: int) -> AttributeInfo:
    _check(name, column, num_items)
    encoded = [_encode(name, value) for value in column.values]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    ranks_V = np.empty(len(order), np.int64)
    ranks_V[order] = np.arange(len(order))
    is_multi_valued = column.offsets_N1 is not None
    files = attribute_files(place, is_multi_valued=is_multi_valued)
    _write_text(folder, files.text, files.text_offsets, [encoded[at] for at in order])
    positions_V = positions([column.values[at] for at in order])
    if positions_V is not None:
        np.save(folder / files.positions, positions_V)

    codes_E = np.full(len(column.codes_E), len(order), code_type(len(order)))
    starts = np.zeros(len(order) + 1, "<i8")
    offsets = np.zeros(num_items + 1, "<i8") if is_multi_valued else None
    num_entries = 0
    for rows, codes in _entries(column, ranks_V, num_items):
        if offsets is None:
            codes_E[rows] = codes
        else:
            codes_E[num_entries : num_entries + len(codes)] = codes
            np.add.at(offsets, rows + 1, 1)
        np.add.at(starts, codes + 1, 1)
        num_entries += len(codes)
    np.cumsum(starts, out=starts)
    np.save(folder / files.starts, starts)
    if offsets is not None:
        np.cumsum(offsets, out=offsets)
        np.save(folder / str(files.offsets), offsets)
        codes_E = codes_E[:num_entries]
    np.save(folder / files.codes, codes_E)
    del codes_E, offsets
    np.save(folder / files.rows, _rows_by_value(_entries(column, ranks_V, num_items), starts))
    return AttributeInfo(name=name, num_values=len(order), is_multi_valued=is_multi_valued)


def _entries(
    column: CodedColumn, ranks_V: NDArray[np.int64], num_items: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows and codes of all entries in chunks: ascending and unique, in any order of the input."""
    codes_E, offsets_N1 = column.codes_E, column.offsets_N1
    for start in range(0, num_items, _CHUNK_ITEMS):
        stop = min(start + _CHUNK_ITEMS, num_items)
        if offsets_N1 is None:
            codes = codes_E[start:stop]
            rows = np.arange(start, stop)
        else:
            codes = codes_E[offsets_N1[start] : offsets_N1[stop]]
            rows = np.repeat(np.arange(start, stop), np.diff(offsets_N1[start : stop + 1]))
        rows, ranks = rows[codes >= 0], ranks_V[codes[codes >= 0]]
        if offsets_N1 is not None:
            pairs = np.sort(rows * len(ranks_V) + ranks)  # np.unique takes many times as long
            pairs = pairs[np.diff(pairs, prepend=-1) > 0]
            rows, ranks = pairs // len(ranks_V), pairs % len(ranks_V)
        yield rows, ranks


def _rows_by_value(
    entries: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], starts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the rows of each value, ascending, from its position in `starts`."""
    rows_E = np.empty(starts[-1], "<i4")
    next_V = starts[:-1].copy()
    for rows, codes in entries:
        by_code = np.argsort(codes, kind="stable")
        codes = codes[by_code]
        firsts = np.flatnonzero(np.diff(codes, prepend=-1))
        lengths = np.diff(firsts, append=len(codes))
        values = codes[firsts]
        rows_E[np.arange(len(codes)) + np.repeat(next_V[values] - firsts, lengths)] = rows[by_code]
        next_V[values] += lengths
    return rows_E


def _check(name: str, column: CodedColumn, num_items: int) -> None:
    codes_E, offsets_N1 = column.codes_E, column.offsets_N1
    length = len(codes_E) if offsets_N1 is None else len(offsets_N1) - 1
    if length != num_items:
        raise BundleError(f"attribute {name!r}: of {length} items, the catalogue has {num_items}")
    if offsets_N1 is not None and (
        offsets_N1[0] != 0 or offsets_N1[-1] != len(codes_E) or (np.diff(offsets_N1) < 0).any()
    ):
        raise BundleError(f"attribute {name!r}: offsets do not rise from 0 to the {len(codes_E)} codes")
    if not len(codes_E) or codes_E.max() < 0:
        raise BundleError(f"attribute {name!r}: no item has a value; leave it out")
    if not -1 <= codes_E.min() <= codes_E.max() < len(column.values):
        raise BundleError(
            f"attribute {name!r}: codes from {codes_E.min()} to {codes_E.max()}; -1 to "
            f"{len(column.values) - 1} are allowed"
        )
    if len(set(column.values)) < len(column.values):
        raise BundleError(f"attribute {name!r}: a value is listed twice")


def _write_text(folder: Path, text: str, text_offsets: str, encoded: list[bytes]) -> None:
    (folder / text).write_bytes(b"".join(encoded))
    offsets: NDArray[Any] = np.zeros(len(encoded) + 1, "<u8")
    np.cumsum([len(value) for value in encoded], out=offsets[1:], dtype=np.uint64)
    np.save(folder / text_offsets, offsets)


def _encode(name: str, value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise BundleError(f"attribute {name!r}: {value!r} is not valid text (a lone surrogate)") from None
    if not 0 < len(encoded) <= MAX_VALUE_BYTES:
        raise BundleError(
            f"attribute {name!r}: a value of {len(encoded)} UTF-8 bytes, 1 to {MAX_VALUE_BYTES} are allowed: "
            f"{value[:60]!r}"
        )
    return encoded
