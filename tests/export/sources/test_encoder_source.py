"""Look-up of given items among those of an encoder's version or run."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_bundles import SmallVersion

from re4.exporting.catalogue import items
from re4.exporting.catalogue.items import ids_of, map_ids
from re4.exporting.sources.encoder_source import open_encoder_source, rows_in


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("int", [1007, 5, 1000, -1], [1, -1, 0, -1]),
        ("int", ["1007", "01000", "", "x", "1000", "9" * 30], [1, -1, -1, -1, 0, -1]),
        ("string", ["item-1-é", "item-1", "x" * 300, "item-0-é"], [1, -1, -1, 0]),
        ("string", [7, 1000], [-1, -1]),
    ],
)
def test_items_are_known_by_their_ids_of_either_kind(
    kind: str, given: list[Any], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "CHUNK_ROWS", 2)
    version = SmallVersion(id_kind=kind)
    source = open_encoder_source(tmp_path / version.publish(tmp_path), tmp_path)
    ids = ids_of(pl.LazyFrame({"item_id": given}))
    assert rows_in(source.item_ids, ids).tolist() == expected
    # A run's ids are looked up in files of their own.
    theirs = map_ids(ids_of(pl.LazyFrame({"item_id": version.ids})), tmp_path)
    assert rows_in(theirs, ids).tolist() == expected
