"""Synthetic event logs: of the size asked for, the same from one seed, skewed, and with tastes to learn."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from re4.benchmarks.synthetic.event_log import EventSpace, write_event_log
from re4.common.errors import DataError
from re4.training.data.events import Columns, read_events


def test_a_log_is_repeatable_and_can_be_prepared(tmp_path: Path) -> None:
    space = EventSpace(num_items=2_000, seed=5)
    written = write_event_log(tmp_path / "log.parquet", space, 30_000)
    again = write_event_log(tmp_path / "again.parquet", space, 30_000)
    assert 30_000 <= written == again < 40_000
    assert (tmp_path / "log.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    other = write_event_log(tmp_path / "other.parquet", EventSpace(num_items=2_000, seed=6), 30_000)
    assert other != written
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "again.parquet",
        "log.parquet",
        "other.parquet",
    ]
    log = read_events(tmp_path / "log.parquet", Columns())
    assert log.events.num_events + log.dropped["duplicate_events"] == written


def test_few_items_get_many_events_and_users_differ_in_length() -> None:
    frame = EventSpace(num_items=10_000).part(0, 5_000)
    by_item = np.sort(frame["item"].value_counts()["count"].to_numpy())[::-1]
    assert by_item[: len(by_item) // 10].sum() > 0.4 * len(frame)
    lengths = frame["user"].value_counts()["count"]
    assert lengths.min() >= 5
    assert lengths.max() > 10 * lengths.median()


def test_a_user_likes_a_few_clusters() -> None:
    space = EventSpace(num_items=10_000, num_tastes=3, cluster_items=25)
    assert space.num_clusters == 400
    clusters = space.part(0, 2_000).with_columns(cluster=pl.col("item") % space.num_clusters)
    assert clusters.group_by("user").agg(pl.col("cluster").n_unique())["cluster"].max() <= 3
    assert clusters["cluster"].n_unique() == space.num_clusters


def test_the_plan_says_how_often_each_item_is_taken() -> None:
    space = EventSpace(num_items=1_000, cluster_items=50)
    taken = space.part(0, 20_000)["item"].to_numpy()
    cluster_N, chance_N = space.item_chances(np.arange(1_000))
    counts_N = np.bincount(taken, minlength=1_000)
    of_cluster_C = np.bincount(taken % space.num_clusters)
    assert np.bincount(cluster_N, weights=chance_N) == pytest.approx(np.ones(space.num_clusters))
    assert counts_N / of_cluster_C[cluster_N] == pytest.approx(chance_N, abs=0.02)


def test_what_is_written_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DataError("no space left")

    monkeypatch.setattr(pl, "scan_parquet", full)
    with pytest.raises(DataError):
        write_event_log(tmp_path / "log.parquet", EventSpace(num_items=100), 1_000)
    assert list(tmp_path.iterdir()) == []
