"""What is live: removed items leave, attributes are refreshed, new items start with a vector of their own.

Takes material and a catalogue, gives material, most popular items first. Histories follow their items:
removed ones drop out of them.

Legend: P histories, L history length, N items before, M items after, D embedding, C cold items.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bundle.layout import IS_COLD
from export.cold import SHRINKAGE, starting_vectors
from export.histories import follow_items
from export.mapped import begin_npy, let_go, mapped_for_writing
from export.material import Material
from re4.errors import DataError
from training.data.catalogue import Catalogue
from training.data.ids import to_kind
from training.data.layout import kind_of

_ROWS_AT_ONCE: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The material of what is live, and what became of the rest."""

    material: Material
    num_removed: int
    """Items with a vector that the catalogue does not have."""
    num_cold: int
    """Items of the catalogue that had no vector."""
    num_unknown: int
    """Cold items that have nothing in common with a trained one: they start at the global mean."""
    num_unusable: int
    """Rows of the catalogue whose id cannot be one of these items' (text where ids are integers)."""


def select_live(material: Material, catalogue: Catalogue, vectors_file: Path) -> Selected:
    """Keep the items that a catalogue has, with its attributes, and add those that only it has.

    Args:
        material: All items that have a vector.
        catalogue: What is live.
        vectors_file: Gets the vectors, `.npy`; the answer's are mapped from it.

    Raises:
        DataError: no item is in the catalogue, or it has a column of a name that is taken.
        ExportError: no history is left.
    """
    if IS_COLD in catalogue.rows.columns:
        raise DataError(f"{catalogue.file}: a column {IS_COLD!r}: rebuild makes one of that name; rename it")
    kind = kind_of(material.items["item_id"])
    rows = catalogue.rows.with_columns(to_kind(catalogue.rows["item_id"], kind).alias("item_id"))
    num_unusable = rows["item_id"].null_count()
    rows = rows.filter(pl.col("item_id").is_not_null())
    ids = material.items.select("item_id").with_row_index("row")
    rows = rows.join(ids, on="item_id", how="left", maintain_order="left")
    new = rows.filter(pl.col("row").is_null()).drop("row")
    kept = rows.filter(pl.col("row").is_not_null())
    del rows
    if kept.is_empty():
        raise DataError(
            f"{catalogue.file} has none of the {len(ids):,} items that have vectors (its ids look like "
            f"{catalogue.rows['item_id'][0]!r}, theirs like {ids['item_id'][0]!r}); check "
            f"--catalogue-item-column"
        )
    kept = kept[_by_popularity(material.counts_N, kept["row"].to_numpy())]
    kept_rows_M = kept["row"].to_numpy().astype(np.int64)
    vectors_MD = _write_vectors(vectors_file, material.vectors_ND, kept_rows_M, len(new))
    trained_items = kept.drop("row")
    trained = vectors_MD[: len(kept)]
    started = starting_vectors(trained, trained_items, new)
    vectors_MD[len(kept) :] = started.vectors_CD
    items = pl.concat([trained_items, new]).with_columns(
        pl.Series(IS_COLD, np.arange(len(vectors_MD)) >= len(kept))
    )
    return Selected(
        material=replace(
            _in_rows(material, kept_rows_M, items, vectors_file),
            counts_N=np.concatenate([material.counts_N[kept_rows_M], np.zeros(len(new), np.int64)]),
            cold_rows=np.arange(len(kept), len(vectors_MD)),
            lineage={
                **material.lineage,
                "catalogue": catalogue.file.name,
                "cold_items": len(new),
                "cold_shrinkage": SHRINKAGE,
            },
        ),
        num_removed=len(ids) - len(kept),
        num_cold=len(new),
        num_unknown=int((started.num_columns_C == 0).sum()),
        num_unusable=num_unusable,
    )


def all_live(material: Material, vectors_file: Path) -> Selected:
    """Keep everything, where there is no catalogue: no item is cold.

    Args:
        material: All items.
        vectors_file: Gets the vectors, `.npy`; the answer's are mapped from it.

    Raises:
        DataError: a column has a name that is taken.
    """
    if IS_COLD in material.items.columns:
        raise DataError(
            f"{material.where}: the items have a column {IS_COLD!r}; rebuild makes one of that name"
        )
    rows_N = _by_popularity(material.counts_N, np.arange(len(material.counts_N)))
    items = material.items[rows_N].with_columns(pl.lit(False).alias(IS_COLD))
    _write_vectors(vectors_file, material.vectors_ND, rows_N, 0)
    ordered = replace(_in_rows(material, rows_N, items, vectors_file), counts_N=material.counts_N[rows_N])
    return Selected(material=ordered, num_removed=0, num_cold=0, num_unknown=0, num_unusable=0)


def _by_popularity(counts_N: NDArray[np.int64], rows_M: NDArray[np.integer]) -> NDArray[np.int64]:
    """Places of rows, those of the most popular items first, then in order of the rows."""
    return np.lexsort((rows_M, -counts_N[rows_M]))


def _in_rows(
    material: Material, rows_M: NDArray[np.int64], items: pl.DataFrame, vectors_file: Path
) -> Material:
    """The material with these rows, then others: vectors from the file, histories that follow."""
    new_rows_N = np.full(len(material.vectors_ND), -1, np.int64)
    new_rows_N[rows_M] = np.arange(len(rows_M))
    rows_PL, lengths_P = follow_items(material.rows_PL, material.lengths_P, new_rows_N, material.where)
    return replace(
        material,
        vectors_ND=np.load(vectors_file, mmap_mode="r"),
        items=items,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
    )


def _write_vectors(
    path: Path, vectors_ND: NDArray[np.float32], kept_rows_M: NDArray[np.int64], num_new: int
) -> NDArray[np.float32]:
    """A file mapped for writing, with the kept vectors in its first rows."""
    shape = (len(kept_rows_M) + num_new, vectors_ND.shape[1])
    with path.open("w+b") as file:
        begin_npy(file, shape)
        written_MD = mapped_for_writing(file, shape)
    for start in range(0, len(kept_rows_M), _ROWS_AT_ONCE):
        part = kept_rows_M[start : start + _ROWS_AT_ONCE]
        written_MD[start : start + len(part)] = vectors_ND[part]
        let_go(vectors_ND)
    return written_MD
