"""External ids: 64-bit integers or strings, kept exactly as they were given.

Text such as `00123` never becomes 123. Text ids become integers only if every one is the canonical
form of its integer, so that writing them gives the same text.
"""

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from re4.common.errors import DataError
from re4.training.data.layout import TYPE_OF_KIND, IdKind


def is_canonical_int(ids: pl.Expr) -> pl.Expr:
    """Return whether texts are canonical 64-bit integers: no sign `+`, leading zero, blank or point."""
    return (ids.cast(pl.Int64, strict=False).cast(pl.String) == ids).fill_null(False)


def integers_if_canonical(texts: pl.Series) -> pl.Series:
    """Make a column of text Int64 if every value is a canonical integer or null, and any is one."""
    whole = texts.alias("text").to_frame().select(is_canonical_int(pl.col("text")).sum()).item()
    return texts.cast(pl.Int64) if whole and whole + texts.null_count() == len(texts) else texts


def is_missing(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return whether ids of a column are null or the empty string."""
    ids = pl.col(column)
    return ids.is_null() | (ids == "") if dtype == pl.String else ids.is_null()


def kind_of_type(where: str, dtype: pl.DataType) -> IdKind:
    """Return the kind of id in a column: integers are `int`; text and categories are `string`.

    Args:
        where: The file and column, for the error's message.
        dtype: The column's type.

    Raises:
        DataError: The type cannot be an id, such as a float or a date.
    """
    if dtype.is_integer():
        return "int"
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        return "string"
    raise DataError(f"{where} holds {dtype}; ids must be integers or strings: write them as one of these")


def to_kind(ids: pl.Series, kind: IdKind) -> pl.Series:
    """Convert ids to another kind; ids that do not exist in that kind become null.

    The integer 123 and the string "123" are the same id; "0123" is no integer.
    """
    if kind == "string" or ids.dtype != pl.String:
        return ids.cast(TYPE_OF_KIND[kind], strict=False)
    numbers = pl.when(is_canonical_int(pl.col("id"))).then(pl.col("id").cast(pl.Int64, strict=False))
    return ids.alias("id").to_frame().select(numbers.alias(ids.name)).to_series()


def duplicate_ids(ids: Callable[[], Iterable[pl.Series]], num_ids: int) -> pl.DataFrame:
    """Find repeated ids, with 8 bytes of memory an id where there are none.

    Args:
        ids: Returns the ids, none of them null, a piece at a time, at every call.
        num_ids: How many there are.

    Returns:
        The rows of repeated ids but each id's first, ascending: `row`, `id`, and `first`, the first
        row.
    """
    hashes_N = np.empty(num_ids, np.uint64)
    start = 0
    for piece in ids():
        hashes_N[start : start + len(piece)] = piece.hash().to_numpy()
        start += len(piece)
    hashes_N.sort()
    suspects = pl.Series(np.unique(hashes_N[1:][hashes_N[1:] == hashes_N[:-1]]))
    del hashes_N
    if suspects.is_empty():
        return pl.DataFrame(schema={"row": pl.Int64, "id": pl.Null, "first": pl.Int64})
    found = []
    start = 0
    for piece in ids():
        rows = pl.int_range(start, start + len(piece), eager=True)
        some = pl.DataFrame([rows.alias("row"), piece.alias("id")])
        found.append(some.filter(piece.hash().is_in(suspects.implode())))
        start += len(piece)
    # Different ids may have the same hash, so the ids themselves are compared.
    firsts = pl.concat(found).with_columns(pl.col("row").first().over("id").alias("first"))
    return firsts.filter(pl.col("row") > pl.col("first"))


def encode(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Encode ids as 0, 1, … in the order of their first appearance.

    Returns:
        The code of every id, UInt32 [E], and the distinct ids in the order of their codes.
    """
    distinct = ids.unique(maintain_order=True).alias("id")
    codes = distinct.to_frame().with_row_index("code")
    coded = ids.alias("id").to_frame().join(codes, on="id", how="left", maintain_order="left")
    return coded["code"], distinct
