"""The study of folding in: events come in order, shares are equal where stated, and pages are complete."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from re4.benchmarks.quality import cold_items, fold_in
from re4.training.data.dataset import Dataset
from re4.training.data.prepare import prepare_data


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """Users choose among the items of one group, an attribute; and their events with times."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    rows = []
    for user in range(200):
        items = 10 * rng.integers(6) + rng.permutation(10)[:6]
        rows += [
            {"user": user, "item": int(item), "timestamp": 1000 * user + place}
            for place, item in enumerate(items)
        ]
    pl.DataFrame(rows).write_csv(folder / "events.csv")
    catalogue = pl.DataFrame({"item": range(60), "group": [[f"g{item // 10}"] for item in range(60)]})
    dataset = prepare_data(pl.DataFrame(rows), folder / "shop", catalogue=catalogue, min_events=2)
    return dataset, folder / "events.csv"


def test_a_study_has_all_rules_and_keeps_finished_seeds(
    log: tuple[Dataset, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, events = log
    for module in (cold_items, fold_in):
        monkeypatch.setattr(module, "PLACES", 10)
    monkeypatch.setattr(fold_in, "BOUNDS", (2,))
    options = {"num_interests": 2, "num_epochs": 1, "patience": 1, "events": events, "ledger": None}
    fold_in.main(dataset.path, tmp_path, seeds="0", newest=True, **options)
    ledger = tmp_path / "fold-in-shop.jsonl"
    (record,) = map(json.loads, ledger.read_text().splitlines())
    rows = record["rows"]
    assert rows["0: not listed"]["share"] == rows["0: not listed"]["cold"] == 0
    assert rows["20: mean of interests, at most 2 of 10"]["share"] <= 0.2
    assert rows["20: mean of interests"]["cold"] > rows["0: attributes alone"]["cold"] - 0.2
    likelihoods = [name for name in rows if "likelihood" in name]
    assert bool(likelihoods) == (0.5 <= record["slope"] <= 2)
    assert record["order"] == "by time"
    assert record["held_out"] == "the newest"
    fold_in.main(dataset.path, tmp_path, seeds="0", newest=True, **options)
    assert [json.loads(line) for line in ledger.read_text().splitlines()] == [record]
    assert "| 5: mean of interests, equal share |" in (tmp_path / "fold-in-shop.md").read_text()


def test_events_come_in_the_order_of_their_times(log: tuple[Dataset, Path]) -> None:
    dataset, events = log
    users_E = np.repeat(np.arange(dataset.train.num_users), np.diff(dataset.train.offsets_U1))
    order = fold_in._order(dataset, users_E, 0, events)
    ids = dataset.users("train").to_numpy().astype(int)[users_E[order]]
    assert (np.diff(ids) >= 0).all(), "times rise with the user's number"
    drawn = fold_in._order(dataset, users_E, 0, None)
    assert sorted(drawn) == sorted(order)
    assert (drawn != order).any()
