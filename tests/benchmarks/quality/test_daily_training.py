"""The study of daily training: the log drifts as described, and no run of the chain sees a test user."""

import numpy as np

from re4.benchmarks.quality.daily_training import drifting_log, run_study
from re4.training.data.dataset import Dataset

SETTINGS = {"embedding_dim": 8, "attention_dim": 8, "num_interests": 2, "construct_dim": 4, "num_epochs": 1}


def test_items_are_released_from_day_to_day():
    log = drifting_log(500, 6)
    days = (log["timestamp"].to_numpy() - 1_700_000_000) // 86_400
    assert (np.diff(days) >= 0).all()
    items = log["item"].to_numpy()
    new = [set(items[days == day]) - set(items[days < day]) for day in range(6)]
    assert all(len(each) > 50 for each in new)
    assert log.equals(drifting_log(500, 6))


def test_two_days_are_compared_and_nothing_leaks(tmp_path):
    log = drifting_log(300, 6)
    first, second = run_study(log, tmp_path, 2, SETTINGS, num_seeds=2)
    assert first["warm"] == first["cold"]
    assert second["warm"] != second["cold"]
    assert second["warm_minus_cold"]["low"] < second["warm_minus_cold"]["high"]
    trained_on = set(Dataset.open(tmp_path / "data-1").users("train"))
    assert not trained_on & set(Dataset.open(tmp_path / "data-2").users("test"))
    assert second["warm"]["cpu_s"] > 0
    assert second["warm"]["half_width_over_seeds"] > 0
    assert run_study(log, tmp_path, 2, SETTINGS, num_seeds=2) == [first, second], (
        "finished runs are not trained again"
    )
