"""Starting vectors for items that were never trained, from trained items with the same attributes.

For a value a (such as genre = drama) that n trained items share, with mean m, and the mean g of all trained
vectors:

    effect(a)  = n / (n + SHRINKAGE) * (m - g)              shrunk to the global mean where few share it
    vector(i)  = g + mean over the columns c of [ mean over the item's values a in c of effect(a) ]

Shrinkage is the usual one of a random effect: the best linear estimate of a group's mean from n members
weighs the observed mean by n / (n + k), where k is the variance within groups over the variance between them
(Efron and Morris, 1975, James-Stein estimation). `SHRINKAGE` is k; docs/export-and-rebuild.md says how it was
chosen. A column in which an item has no value, or only values that no trained item has, is left out of the
mean. An item without any usable column starts at g.

Legend: N trained items, C cold items, D embedding, V values, E entries (one for each value of each item).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.columns import CodedColumn
from re4.exporting.catalogue.attributes import describes, encode_column, survey_column
from re4.exporting.catalogue.items import ItemColumn
from re4.exporting.storage.mapped_vectors import map_unnamed_file

SHRINKAGE: Final = 10.0
"""Trained items that a value must have for half of its effect to count."""

_CHUNK_ROWS: Final = 65_536


def start_cold_items(
    vectors_MD: NDArray[np.float32],
    num_trained: int,
    columns: Mapping[str, ItemColumn],
    folder: Path,
    *,
    shrinkage: float = SHRINKAGE,
) -> NDArray[np.int32]:
    """Make a vector for every cold item.

    Args:
        vectors_MD: Vectors of trained items, then rows for cold ones, which are filled; may be mapped.
        num_trained: How many items are trained, N.
        columns: Columns of the items, N and then C; types that do not describe items are ignored. The places
            of cold items in a column's table ascend.
        folder: Temporary sums are kept there, in files without a name.
        shrinkage: As `SHRINKAGE`.

    Returns:
        The number of columns used for each cold item, [C]; 0 for those that start at the global mean.
    """
    num_cold, width = len(vectors_MD) - num_trained, vectors_MD.shape[1]
    num_columns_C = np.zeros(num_cold, np.int32)
    if not num_cold:
        return num_columns_C
    mean_D = _mean(vectors_MD[:num_trained])
    sums_CD = map_unnamed_file(folder, (num_cold, width), "<f8")
    for column in columns.values():
        if not describes(column.kind):
            continue
        places_N = column.places_N
        cold_places = np.arange(num_trained, len(vectors_MD)) if places_N is None else places_N[num_trained:]
        values = survey_column(column, cold_places).values
        if values.is_empty():
            continue
        coded = encode_column(column, values)
        effects_VD, counts_V = _effects(vectors_MD, num_trained, coded, mean_D, shrinkage, folder)
        for rows, owners_E, codes_E in _entries(coded, num_trained, len(vectors_MD)):
            is_known_E = counts_V[codes_E] > 0
            owners_E, codes_E = owners_E[is_known_E], codes_E[is_known_E]
            num_values_R = np.bincount(owners_E, minlength=rows.stop - rows.start)
            has_any_R = num_values_R > 0
            of_column_RD = np.zeros((len(num_values_R), width))
            np.add.at(of_column_RD, owners_E, effects_VD[codes_E])
            cold = slice(rows.start - num_trained, rows.stop - num_trained)
            sums_CD[cold][has_any_R] += of_column_RD[has_any_R] / num_values_R[has_any_R, None]
            num_columns_C[cold] += has_any_R
    for start in range(0, num_cold, _CHUNK_ROWS):
        some = slice(start, start + _CHUNK_ROWS)
        vectors_MD[num_trained:][some] = mean_D + sums_CD[some] / np.maximum(num_columns_C[some], 1)[:, None]
    return num_columns_C


def _effects(
    vectors_MD: NDArray[np.float32],
    num_trained: int,
    coded: CodedColumn,
    mean_D: NDArray[np.float64],
    shrinkage: float,
    folder: Path,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return effects of values [V, D], and the number of trained items that have each."""
    counts_V = np.zeros(len(coded.values), np.int64)
    effects_VD = map_unnamed_file(folder, (len(counts_V), vectors_MD.shape[1]), "<f8")
    for rows_E, codes_E in _in_parts(_entries(coded, 0, num_trained)):
        by_code = np.argsort(codes_E, kind="stable")
        codes = codes_E[by_code]
        firsts = np.flatnonzero(np.diff(codes, prepend=-1))
        effects_VD[codes[firsts]] += np.add.reduceat(
            vectors_MD[rows_E[by_code]].astype(np.float64), firsts, axis=0
        )
        counts_V[codes[firsts]] += np.diff(firsts, append=len(codes))
    for start in range(0, len(counts_V), _CHUNK_ROWS):
        some = slice(start, start + _CHUNK_ROWS)
        num_V1 = counts_V[some, None]
        # Values that no trained item has get no effect, and are not used.
        effects_VD[some] = (effects_VD[some] - num_V1 * mean_D) / np.maximum(num_V1 + shrinkage, 1)
    return effects_VD, counts_V


def _entries(
    coded: CodedColumn, first: int, stop: int
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Go through every value of every item from a row to before another, each once, in chunks.

    Yields:
        The rows of a chunk, and of its entries the owners, counted from the chunk's first row, and the codes.
    """
    for start in range(first, stop, _CHUNK_ROWS):
        rows = slice(start, min(start + _CHUNK_ROWS, stop))
        if coded.offsets_N1 is None:
            codes = coded.codes_E[rows].astype(np.int64)
            owners = np.arange(len(codes))
        else:
            offsets = coded.offsets_N1[rows.start : rows.stop + 1]
            codes = coded.codes_E[offsets[0] : offsets[-1]].astype(np.int64)
            owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            pairs = owners * (len(coded.values) + 1) + codes
            kept = np.sort(np.unique(pairs, return_index=True)[1])
            owners, codes = owners[kept], codes[kept]
        yield rows, owners[codes >= 0], codes[codes >= 0]


def _in_parts(
    entries: Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows and codes of entries, as many at a time as vectors are summed at a time."""
    rows_E, codes_E = np.empty(0, np.int64), np.empty(0, np.int64)
    for rows, owners, codes in entries:
        rows_E, codes_E = np.append(rows_E, rows.start + owners), np.append(codes_E, codes)
        while len(rows_E) >= _CHUNK_ROWS:
            yield rows_E[:_CHUNK_ROWS], codes_E[:_CHUNK_ROWS]
            rows_E, codes_E = rows_E[_CHUNK_ROWS:], codes_E[_CHUNK_ROWS:]
    if len(rows_E):
        yield rows_E, codes_E


def _mean(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    total_D = np.zeros(vectors_ND.shape[1])
    for start in range(0, len(vectors_ND), _CHUNK_ROWS):
        total_D += vectors_ND[start : start + _CHUNK_ROWS].sum(axis=0, dtype=np.float64)
    return total_D / len(vectors_ND)
