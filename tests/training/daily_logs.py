"""Logs of a shop that grows from day to day, small enough to train on in a second."""

import json

import numpy as np
import polars as pl

from re4.training.data import split as split_module
from re4.training.data.prepare import prepare_data

DAY_S = 86_400
NUM_ITEMS = 60


def log(num_days, *, users_per_day=60, as_text=False, seed=0):
    """Each day brings new users; every user comes back on each later day. Items 50 to 59 appear on day 1."""
    random = np.random.default_rng(seed)
    rows = []
    for day in range(num_days):
        for user in range(users_per_day * (day + 1)):
            taste = user % 5
            items = taste * 10 + random.integers(0, 10, 6)
            if day and user % 3 == 0:
                items[:2] = random.integers(50, NUM_ITEMS, 2)
            seconds = 1_700_000_000 + day * DAY_S + np.sort(random.integers(0, DAY_S, 6))
            rows += [(user, int(item), int(second)) for item, second in zip(items, seconds, strict=True)]
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    frame = frame.sample(fraction=1, shuffle=True, seed=seed)
    return frame.with_columns(pl.col("user").cast(pl.String)) if as_text else frame


def prepare(frame, out, **options):
    return prepare_data(frame, out, now_s=2e9, **{"min_events": 1, **options})


def prepare_as_earlier_versions(frame, out, monkeypatch, seed=0):
    """Hold out users by a permutation of the users of this log, and record no rule."""

    def permuted(user_ids, seed):
        return np.random.default_rng(seed).permutation(len(user_ids)) % 10

    with monkeypatch.context() as patch:
        patch.setattr(split_module, "user_parts", permuted)
        dataset = prepare(frame, out, seed=seed)
    file = dataset.path / "dataset.json"
    facts = json.loads(file.read_text())
    del facts["prepared"]["split_rule"]
    file.write_text(json.dumps(facts))
    return type(dataset).open(dataset.path)


def as_an_earlier_versions_run(run):
    """Take the record of the data sets from a run."""
    file = run / "config.json"
    facts = json.loads(file.read_text())
    del facts["trained_on"]
    file.write_text(json.dumps(facts))
