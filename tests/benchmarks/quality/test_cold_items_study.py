"""The study of unseen items: held-out items leave no event, rows are complete, finished seeds are kept."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from re4.benchmarks.quality import cold_items
from re4.benchmarks.quality.cold_items import held_out_users, hold_out, main, without
from re4.training.data.dataset import Dataset
from re4.training.data.prepare import prepare_data


@pytest.fixture
def shop(tmp_path: Path) -> Dataset:
    """Users choose among the items of one group; the group is an attribute."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(200):
        items = 10 * rng.integers(6) + rng.permutation(10)[:6]
        rows += [
            {"user": user, "item": int(item), "timestamp": 1000 + place} for place, item in enumerate(items)
        ]
    catalogue = pl.DataFrame({"item": range(60), "group": [[f"g{item // 10}"] for item in range(60)]})
    return prepare_data(pl.DataFrame(rows), tmp_path / "shop", catalogue=catalogue, min_events=2)


def test_held_out_items_leave_no_event(shop: Dataset, tmp_path: Path) -> None:
    is_cold = hold_out(shop, 1, None)
    assert is_cold.sum() == 6
    assert (is_cold != hold_out(shop, 2, None)).any()
    cold_ids = set(shop.items()["item_id"].filter(pl.Series(is_cold)))
    reduced = without(shop, is_cold, tmp_path / "reduced")
    assert not cold_ids & set(reduced.items()["item_id"])
    users = held_out_users(shop.test, is_cold)
    assert not any(is_cold[history].any() for history in users.histories)
    newest = hold_out(shop, 1, {item: item for item in range(60)})
    assert set(shop.items()["item_id"].filter(pl.Series(newest))) == set(range(54, 60))


def test_a_study_has_all_rows_and_keeps_finished_seeds(
    shop: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_items, "PLACES", 10)
    out = tmp_path / "study"
    main(shop.path, out, seeds="0", events=None, ledger=None, num_interests=1, num_epochs=1, patience=1)
    ledger = out / "cold-shop.jsonl"
    record = json.loads(ledger.read_text())
    rows = record["rows"]
    assert rows["cold items not listed"]["share"] == rows["cold items not listed"]["cold"] == 0
    assert {f"folded in from {num} users, matched" for num in cold_items.NUM_USERS} < rows.keys()
    assert rows["ridge"]["among_cold"] > rows["cold items not listed"]["among_cold"]
    options = {"events": None, "ledger": None, "num_interests": 1, "num_epochs": 1, "patience": 1}
    main(shop.path, out, seeds="0", **options)
    assert [json.loads(line) for line in ledger.read_text().splitlines()] == [record]
    assert "| ridge, matched |" in (out / "cold-shop.md").read_text()
    # Of a seed that lacks rows, those alone are made.
    less = {name: row for name, row in rows.items() if not name.startswith(cold_items.LIKELIHOOD)}
    ledger.write_text(
        json.dumps({**record, "rows": {**less, "ridge": {**rows["ridge"], "cold": 0.5}}}) + "\n"
    )
    main(shop.path, out, seeds="0", **options)
    again = json.loads(ledger.read_text())["rows"]
    assert list(again) == list(rows)
    assert again["ridge"]["cold"] == 0.5
    assert again[cold_items.LIKELIHOOD]["norm"] == pytest.approx(
        rows[cold_items.LIKELIHOOD]["norm"], rel=0.01
    )
    main(shop.path, out, seeds="0", with_attributes=True, **options)
    more = json.loads(ledger.read_text())["rows"]
    assert more.keys() - rows.keys() == {
        cold_items.ATTRIBUTES,
        f"{cold_items.ATTRIBUTES}, matched",
        cold_items.ATTRIBUTES_ABSENT,
    }
    assert more[cold_items.ATTRIBUTES]["among_cold"] > more[cold_items.ATTRIBUTES_ABSENT]["among_cold"]
