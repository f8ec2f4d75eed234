"""Changes of live items, taken into the catalogue of a rebuild.

An added or changed item counts as a row of the catalogue, a removed one is left out. A change holds until the
catalogue has caught up: a change that the live version took in before, of an item that the catalogue has too,
is superseded by the catalogue. Without a catalogue, all changes hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bundle.layout import IS_COLD, VECTORS, IdKind
from re4.bundle.live_items.records import ItemId, Removal, Upsert
from re4.bundle.live_items.state import LiveState, as_kind
from re4.bundle.titles import USUAL_COLUMNS
from re4.exporting.catalogue.items import ID, ItemColumn, map_ids
from re4.exporting.rebuild.live_items import LiveItems
from re4.exporting.sources.version_inputs import CATALOGUE, VersionInputs
from re4.training.data.catalogue import Catalogue
from re4.training.data.tables.row_store import CHUNK_ROWS, Keep


@dataclass(frozen=True, kw_only=True)
class LiveChanges:
    """The changes that a rebuild takes in."""

    sequence: int = 0
    """Changes up to this one are part of the version."""
    upserts: Mapping[ItemId, Upsert] = field(default_factory=dict)
    """By id, in the kind of the run's ids."""
    removals: frozenset[ItemId] = frozenset()
    adopted: Mapping[ItemId, int] = field(default_factory=dict)
    """Items whose state the catalogue has too, by the id of the change: the sequence number of that state."""

    @classmethod
    def of(cls, state: LiveState, kind: IdKind, catalogue: Catalogue | None, taken: int) -> "LiveChanges":
        """Return the changes that hold.

        Args:
            state: Of the bundle directory.
            kind: Kind of the run's ids.
            catalogue: Of the rebuild; None for none.
            taken: Changes up to this one are part of the live version.
        """
        texts = [str(id_) for id_ in state.items]
        known: set[str] = set()
        if catalogue is not None and texts:
            ids = catalogue.rows.select(pl.col(ID).cast(pl.String))
            known = set(ids.filter(pl.col(ID).is_in(texts)).collect()[ID].to_list())
        upserts: dict[ItemId, Upsert] = {}
        removals: set[ItemId] = set()
        adopted: dict[ItemId, int] = {}
        for id_, record in state.items.items():
            own = as_kind(id_, kind)
            if own is None:
                continue
            is_known, change = str(id_) in known, record.change
            is_removal = isinstance(change, Removal)
            if catalogue is not None and record.sequence <= taken and is_known != is_removal:
                adopted[id_] = record.sequence
            elif isinstance(change, Upsert):
                upserts[own] = change
            if is_removal:
                removals.add(own)
        return cls(sequence=state.sequence, upserts=upserts, removals=frozenset(removals), adopted=adopted)

    def __bool__(self) -> bool:
        """Return whether the catalogue of the rebuild changes by them."""
        return bool(self.upserts or self.removals)

    def apply(
        self, rows: pl.LazyFrame, keep: Keep, where: Path | str, title_column: str | None = None
    ) -> Catalogue:
        """Return a catalogue with these changes. A change without a title keeps the catalogue's.

        Args:
            rows: The catalogue's rows, `item_id` first.
            keep: Keeps the new rows.
            where: Name of the catalogue.
            title_column: The column with the titles; None for the usual ones.
        """
        schema = rows.collect_schema()
        usual = USUAL_COLUMNS if title_column is None else (title_column,)
        titles = next((name for name in usual if schema.get(name) == pl.String), None)
        changed = [str(id_) for id_ in (*self.upserts, *self.removals)]
        others = rows.filter(~pl.col(ID).cast(pl.String).is_in(changed))
        own = self._rows(schema)
        if titles is not None and own[titles].has_nulls():
            former = rows.filter(pl.col(ID).is_in(own[ID].implode())).select(ID, former=titles).collect()
            own = own.join(former, on=ID, how="left", maintain_order="left")
            own = own.with_columns(pl.coalesce(titles, "former").alias(titles)).drop("former")
        rows = keep(pl.concat([others, own.lazy()], how="diagonal"))
        return Catalogue(
            file=where, item_column=ID, rows=rows, num_rows=int(rows.select(pl.len()).collect().item())
        )

    def _rows(self, schema: pl.Schema) -> pl.DataFrame:
        """Return the rows of added and changed items, in the types of a catalogue's columns."""
        own: list[tuple[ItemId, Upsert]] = []
        for id_, upsert in self.upserts.items():
            as_catalogue = as_kind(id_, "string" if schema[ID] == pl.String else "int")
            if as_catalogue is not None:
                own.append((as_catalogue, upsert))
        columns = {ID: pl.Series([id_ for id_, _ in own], dtype=schema[ID])}
        values = {name: None for _, upsert in own for name in upsert.attributes}
        for name in (*(name for name in schema if name != ID), *values):
            if name not in columns and name != IS_COLD:
                texts = [upsert.attributes.get(name, ()) for _, upsert in own]
                kind = schema.get(name) or (
                    pl.List(pl.String) if any(len(each) > 1 for each in texts) else pl.String()
                )
                columns[name] = pl.Series([_as_type(each, kind) for each in texts], dtype=kind)
        return pl.DataFrame(columns)

    def give_vectors(self, selected: LiveItems, staged: Path, folder: Path) -> LiveItems:
        """Write the vectors that came with the changes, where they are of the version's embedding space.

        Args:
            selected: The items of the version.
            staged: The folder of the version's files.
            folder: Holds temporary files.
        """
        inputs = selected.inputs
        space, dim = inputs.model.space, inputs.vectors_ND.shape[1]
        given = {
            id_: upsert.vector_D
            for id_, upsert in self.upserts.items()
            if upsert.vector_D is not None and upsert.space == space and len(upsert.vector_D) == dim
        }
        if not given:
            return selected
        ids: list[Any] = list(given)
        rows = map_ids(inputs.items.ids, folder).rows(ids)
        written_ND = np.load(staged / VECTORS, mmap_mode="r+")
        for row, vector_D in zip(rows.tolist(), given.values(), strict=True):
            if row >= 0:
                written_ND[row] = vector_D
        written_ND.flush()
        cold_rows = np.setdiff1d(inputs.cold_rows, rows)
        columns = {**inputs.items.columns, IS_COLD: _is_cold(cold_rows, len(inputs.vectors_ND))}
        items = replace(inputs.items, columns=columns)
        return replace(selected, inputs=replace(inputs, items=items, cold_rows=cold_rows))


def rows_of(inputs: VersionInputs) -> pl.LazyFrame:
    """Return the ids and columns of all items as a catalogue's rows, where there is no catalogue."""
    columns: dict[str, pl.Series] = {ID: _joined(list(inputs.items.ids.chunks()))}
    for name, column in inputs.items.columns.items():
        values = _joined(list(column.chunks()))
        columns[name] = values if column.places_N is None else values[column.places_N]
    return pl.DataFrame(columns).lazy()


def without_catalogue(selected: LiveItems) -> LiveItems:
    """Return the selection of a rebuild that has live changes, but no catalogue."""
    inputs = selected.inputs
    lineage = {name: value for name, value in inputs.lineage.items() if name != CATALOGUE}
    return replace(selected, inputs=replace(inputs, lineage=lineage))


def _joined(chunks: Sequence[pl.Series]) -> pl.Series:
    return pl.concat(list(chunks), how="vertical_relaxed") if chunks else pl.Series(dtype=pl.Null)


def _as_type(texts: tuple[str, ...], kind: pl.DataType) -> Any:
    """Return the values of an attribute in the type of a column; None where they do not fit."""
    if not texts:
        return None
    if isinstance(kind, pl.List):
        inner = pl.DataType.from_python(str) if kind.inner is None else kind.inner
        values = [_one(text, inner) for text in texts]
        return [value for value in values if value is not None]
    return _one(texts[0], kind)


def _one(text: str, kind: Any) -> Any:
    try:
        if kind.is_integer():
            return int(text)
        if kind.is_float():
            return float(text)
    except ValueError:
        return None
    if kind == pl.Boolean:
        return {"true": True, "false": False}.get(text)
    return text if kind in (pl.String, pl.Categorical) else None


def _is_cold(cold_rows: NDArray[np.int64], num_items: int) -> ItemColumn:
    is_cold_N = np.zeros(num_items, np.bool_)
    is_cold_N[cold_rows] = True
    return ItemColumn(
        kind=pl.Boolean(),
        chunks=lambda: (
            pl.Series(is_cold_N[start : start + CHUNK_ROWS]) for start in range(0, num_items, CHUNK_ROWS)
        ),
    )
