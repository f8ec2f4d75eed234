"""A version keeps more real histories than its golden queries, and hands them on to the next rebuild."""

from pathlib import Path

import numpy as np
from rebuild_samples import Shop

from re4.bundle.golden import GoldenQueries
from re4.bundle.histories import read_histories
from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import GOLDEN, HISTORIES
from re4.bundle.publishing.current import live_version
from re4.exporting.assemble import NUM_GOLDEN_QUERIES

NUM_HISTORIES = 100


def histories_of(version: Path, num_items: int) -> list[tuple[str, ...]]:
    """Those that a version keeps, in ids, newest first."""
    ids = np.array(ItemIds.open(version, "string", num_items).ids(np.arange(num_items)))
    rows_PL, lengths_P = read_histories(version / HISTORIES)
    return sorted(tuple(ids[rows[:length]]) for rows, length in zip(rows_PL, lengths_P, strict=True))


def test_none_is_lost_from_one_rebuild_to_the_next(tmp_path: Path) -> None:
    """The first live version is an old one, without such a file: its golden queries have to do."""
    shop = Shop(tmp_path, num_golden=NUM_HISTORIES)
    golden = GoldenQueries.read(shop.bundles / shop.first / GOLDEN)
    expected = sorted(
        tuple(shop.version.ids[row] for row in rows[:length])
        for rows, length in zip(golden.rows_QL, golden.lengths_Q, strict=True)
    )
    assert len(expected) == NUM_HISTORIES > NUM_GOLDEN_QUERIES
    for _ in range(2):
        error, report = shop.rebuild()
        assert error is None
        assert report["num_histories"] == NUM_HISTORIES
        live = live_version(shop.bundles)
        assert len(GoldenQueries.read(live / GOLDEN).rows_QL) == NUM_GOLDEN_QUERIES
        assert histories_of(live, 200) == expected
        drift = next(gate for gate in report["gates"] if gate["name"] == "drift")
        assert f"over {NUM_HISTORIES} real requests" in drift["meaning"]


def test_items_that_left_leave_the_histories(tmp_path: Path) -> None:
    shop = Shop(tmp_path, num_golden=NUM_HISTORIES)
    gone = set(shop.version.ids[::10])
    kept = [item for item in shop.version.ids if item not in gone]
    assert shop.rebuild()[0] is None
    before = histories_of(live_version(shop.bundles), 200)
    assert any(gone & set(history) for history in before)
    assert shop.rebuild("--catalogue", shop.write_catalogue(kept))[0] is None
    after = histories_of(live_version(shop.bundles), len(kept))
    left = [tuple(item for item in history if item not in gone) for history in before]
    assert after == sorted(filter(None, left))
