"""A rebuild takes live items in, and says up to which change: at the swap none is missing and none twice."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rebuild_samples import Shop

import re4
from re4.bundle.attributes.reader import Attributes
from re4.bundle.layout import IS_COLD, VECTORS
from re4.bundle.live_items.records import Evidence, Removal, Upsert
from re4.bundle.live_items.state import read_live_state
from re4.bundle.live_items.writer import append_changes
from re4.bundle.publishing import retention
from re4.bundle.publishing.current import live_version
from re4.bundle.verify import read_manifest


def all_items(bundles: Path, history: list[Any]) -> set[Any]:
    """Return every item that answers may contain; none may come twice."""
    with re4.Retriever.open(bundles) as retriever:
        found = retriever.retrieve(history, 10_000).item_ids
    assert len(found) == len(set(found))
    return set(found)


def facts_of(bundles: Path, id_: Any) -> tuple[dict[str, list[str]], np.ndarray]:
    """Return the attributes and the vector of an item of the live version."""
    from re4.bundle.ids.id_map import ItemIds

    path = live_version(bundles)
    manifest = read_manifest(path)
    (row,) = ItemIds.open(path, manifest.items.id_kind, manifest.items.num_items).rows([id_])
    assert row >= 0
    attributes = Attributes.open(path, manifest.items.attributes, manifest.items.num_items)
    values = {}
    for name in attributes.names:
        codes, _ = attributes[name].codes_of(np.array([row]))
        values[name] = [
            attributes[name].value(int(code)) for code in codes if code < attributes[name].num_values
        ]
    return values, np.load(path / VECTORS)[row]


BOUNDS = ("--min-overlap", 0, "--max-item-share", 1)


@pytest.mark.parametrize("has_catalogue", [False, True])
def test_taken_in(tmp_path: Path, has_catalogue: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Versions of one second are pruned as well: each rebuild here takes less.
    monkeypatch.setattr(retention, "_SWAP", timedelta(0))
    shop = Shop(tmp_path)
    ids, space = shop.version.ids, shop.version.space
    options: list[Any] = [*BOUNDS, "--keep", 1]
    if has_catalogue:
        titles = [f"Title {place}" for place in range(200)]
        years = [*range(1940, 1960)] * 10
        catalogue = shop.write_catalogue(ids, colour=["red", "blue"] * 100, year=years, title=titles)
        options += ["--catalogue", catalogue]
    vector = np.linspace(-1, 1, shop.version.vectors_ND.shape[1], dtype=np.float32)
    changes = [
        Upsert("new 1", {"colour": ("blue",), "year": ("1950",), "tags": ("a", "b"), "title": ("New",)}),
        Upsert("new 2", {"colour": ("mauve",), "year": ("x",)}, vector, space),
        Upsert(ids[0], {"colour": ("gold",)}),
        *(
            Upsert(id_, {"colour": ("gold", "blue")[place % 2 :][:1]})
            for place, id_ in enumerate(ids[100:120])
        ),
        Upsert("gone", {}),
        Removal("gone"),
        Removal(ids[1]),
        Evidence("new 1", space, 1.0, vector),
    ]
    append_changes(shop.bundles, changes)
    expected = {*ids, "new 1", "new 2"} - {ids[1]}
    assert all_items(shop.bundles, ids[2:5]) == expected
    error, report = shop.rebuild(*options)
    assert error is None, report
    first = live_version(shop.bundles).name
    assert (report["num_live_upserts"], report["num_live_removals"]) == (23, 2)
    manifest = read_manifest(live_version(shop.bundles))
    assert manifest.live_sequence == 27
    assert manifest.items.num_items == 201
    assert all_items(shop.bundles, ids[2:5]) == expected
    values, _ = facts_of(shop.bundles, "new 1")
    assert values["colour"] == ["blue"]
    assert values[IS_COLD] == ["true"]
    if has_catalogue:
        assert values["year"] == ["1950"]
        with re4.Retriever.open(shop.bundles) as retriever:
            items = retriever.get_items(["new 1", ids[0], ids[5]])
        assert [item.title for item in items] == ["New", "Title 0", "Title 5"], (
            "a changed item keeps its title"
        )
    values, stored = facts_of(shop.bundles, "new 2")
    assert values[IS_COLD] == ["false"]
    np.testing.assert_array_equal(stored, vector)
    values, stored = facts_of(shop.bundles, ids[0])
    assert values["colour"] == ["gold"]
    np.testing.assert_array_equal(stored, shop.version.vectors_ND[0])
    # Changes after the rebuild lie over the version; the earlier ones do not come back.
    append_changes(shop.bundles, [Upsert(ids[1], {"colour": ("green",)}), Removal("new 2")])
    expected = (expected | {ids[1]}) - {"new 2"}
    assert all_items(shop.bundles, ids[2:5]) == expected
    # Nothing is lost by the next rebuild, whose catalogue still does not have the new item.
    error, report = shop.rebuild(*options)
    assert error is None, report
    assert all_items(shop.bundles, ids[2:5]) == expected
    values, _ = facts_of(shop.bundles, ids[0])
    assert values["colour"] == (["red"] if has_catalogue else ["gold"]), "the catalogue has caught up"
    assert all_items(shop.bundles, ids[2:5]) == expected
    # A roll-back shows the changes over the earlier version.
    second = live_version(shop.bundles).name
    (shop.bundles / "CURRENT").write_text(first + "\n")
    assert all_items(shop.bundles, ids[2:5]) == expected
    (shop.bundles / "CURRENT").write_text(second + "\n")
    for _ in range(2):
        error, report = shop.rebuild(*options)
        assert error is None, report
    left = set(read_live_state(shop.bundles).items)
    if has_catalogue:
        assert left == {"new 1"}, "the catalogue does not have it"
    assert all_items(shop.bundles, ids[2:5]) == expected


def test_damaged_live_items_publish_nothing(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    append_changes(shop.bundles, [Removal("x")])
    (shop.bundles / "LIVE").write_text(json.dumps({}))
    error, report = shop.rebuild()
    assert error is not None
    assert "re4 items repair" in json.dumps(report)
    assert live_version(shop.bundles).name == shop.first
