"""Starting vectors for items that were never trained, from the items that they have something in common with.

For a value a (such as genre = drama) that n trained items share, with mean m, and the mean g of all trained
vectors:

    effect(a)  = n / (n + SHRINKAGE) * (m - g)              shrunk to the global mean where few share it
    vector(i)  = g + mean over the columns c of [ mean over the item's values a in c of effect(a) ]

Shrinkage is the usual one of a random effect: the best linear guess of a group's mean from n members weighs
what was seen by n / (n + k), where k is the variance within groups over the variance between them (Efron and
Morris, 1975, James-Stein estimation). `SHRINKAGE` is k; export/README.md says how it was chosen. A column in
which an item has no value, or only values that no trained item has, says nothing and is left out of the mean;
an item of which no column says anything starts at g.

Legend: N trained items, C cold items, D embedding, V values, E entries (one for each value of each item).
"""

from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

SHRINKAGE: Final = 10.0
"""Trained items that a value must have for half of its effect to be believed."""

_ROWS_AT_ONCE: Final = 65_536


class StartingVectors(NamedTuple):
    """Vectors of cold items."""

    vectors_CD: NDArray[np.float32]
    num_columns_C: NDArray[np.int64]
    """How many columns said something of each item; 0 for those that start at the global mean."""


def starting_vectors(
    vectors_ND: NDArray[np.float32],
    trained: pl.DataFrame,
    cold: pl.DataFrame,
    *,
    shrinkage: float = SHRINKAGE,
) -> StartingVectors:
    """Make a vector for every cold item.

    Args:
        vectors_ND: Trained vectors; may be memory-mapped.
        trained: Their items' attributes, row by row; texts, whole numbers, booleans or lists of those. Other
            columns, and `item_id`, say nothing.
        cold: The cold items' attributes, of the same columns.
        shrinkage: As `SHRINKAGE`.
    """
    num_cold, width = len(cold), vectors_ND.shape[1]
    mean_D = _mean(vectors_ND)
    sums_CD = np.zeros((num_cold, width))
    num_columns_C = np.zeros(num_cold, np.int64)
    for name in trained.columns:
        if name == "item_id" or not _says_something(trained[name].dtype):
            continue
        effects = _effects(vectors_ND, trained[name], cold[name], mean_D, shrinkage)
        if effects is None:
            continue
        owners_E, codes_E, effects_VD = effects
        num_values_C = np.bincount(owners_E, minlength=num_cold)
        has_any_C = num_values_C > 0
        of_column_CD = np.zeros((num_cold, width))
        np.add.at(of_column_CD, owners_E, effects_VD[codes_E])
        sums_CD[has_any_C] += of_column_CD[has_any_C] / num_values_C[has_any_C, None]
        num_columns_C += has_any_C
    vectors_CD = mean_D + sums_CD / np.maximum(num_columns_C, 1)[:, None]
    return StartingVectors(vectors_CD.astype(np.float32), num_columns_C)


def _effects(
    vectors_ND: NDArray[np.float32],
    trained: pl.Series,
    cold: pl.Series,
    mean_D: NDArray[np.float64],
    shrinkage: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """The values of cold items that trained ones share: whose [E], which [E], and their effects [V, D]."""
    of_cold = _entries(cold)
    if of_cold.is_empty():
        return None
    of_trained = _entries(trained).join(of_cold.select("value").unique(), on="value", how="semi")
    if of_trained.is_empty():
        return None
    values = of_trained.select("value").unique(maintain_order=True).with_row_index("code")
    of_trained = of_trained.join(values, on="value", how="inner")
    of_cold = of_cold.join(values, on="value", how="inner")
    codes_E, rows_E = (of_trained[name].to_numpy().astype(np.int64) for name in ("code", "row"))
    counts_V = np.bincount(codes_E, minlength=len(values))
    sums_VD = np.zeros((len(values), vectors_ND.shape[1]))
    order = np.argsort(rows_E, kind="stable")  # a mapped file is read in one direction
    for start in range(0, len(order), _ROWS_AT_ONCE):
        part = order[start : start + _ROWS_AT_ONCE]
        by_code = part[np.argsort(codes_E[part], kind="stable")]
        codes = codes_E[by_code]
        firsts = np.flatnonzero(np.diff(codes, prepend=-1))
        sums_VD[codes[firsts]] += np.add.reduceat(
            vectors_ND[rows_E[by_code]].astype(np.float64), firsts, axis=0
        )
    effects_VD = (sums_VD - counts_V[:, None] * mean_D) / (counts_V + shrinkage)[:, None]
    return (
        of_cold["row"].to_numpy().astype(np.int64),
        of_cold["code"].to_numpy().astype(np.int64),
        effects_VD,
    )


def _entries(column: pl.Series) -> pl.DataFrame:
    """Every value of every item, once, as text: `row` and `value`."""
    frame = column.alias("value").to_frame().with_row_index("row")
    if column.dtype.is_nested():
        frame = frame.filter(pl.col("value").list.len() > 0).explode("value").unique(maintain_order=True)
    text = frame.with_columns(pl.col("value").cast(pl.String)).drop_nulls()
    return text.filter(pl.col("value") != "")


def _says_something(kind: pl.DataType) -> bool:
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    return inner.is_integer() or isinstance(inner, pl.String | pl.Boolean | pl.Categorical | pl.Enum)


def _mean(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    total_D = np.zeros(vectors_ND.shape[1])
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        total_D += vectors_ND[start : start + _ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
    return total_D / len(vectors_ND)
