"""A data set with planted tastes, two per user: a model that learns them beats popularity."""

import numpy as np
import polars as pl

from re4.training.data.dataset import Dataset, Sequences
from re4.training.data.writing import write_dataset

NUM_CLUSTERS, CLUSTER_SIZE = 8, 15


def planted_sequences(num_users, *, held_out, random):
    """Users with two tastes each: every event comes from one of the user's two clusters of items."""
    events = []
    for _ in range(num_users):
        tastes = random.choice(NUM_CLUSTERS, 2, replace=False)
        clusters = random.choice(tastes, 20)
        events.append(clusters * CLUSTER_SIZE + random.integers(0, CLUSTER_SIZE, 20))
    return Sequences(
        items_E=np.concatenate(events).astype(np.int32),
        offsets_U1=np.arange(num_users + 1, dtype=np.int64) * 20,
        num_history_U=np.full(num_users, 16 if held_out else 20, dtype=np.int32),
    )


def write_planted(path) -> Dataset:
    """Prepare the data set at `path`; ids are strings, and the catalogue has titles."""
    random = np.random.default_rng(7)
    num_items = NUM_CLUSTERS * CLUSTER_SIZE
    num_users = {"train": 400, "valid": 60, "test": 60}
    return write_dataset(
        path,
        items=pl.DataFrame(
            {
                "item_id": [f"item-{row}" for row in range(num_items)],
                "title": [f"Title {row}" for row in range(num_items)],
            }
        ),
        sequences={
            split: planted_sequences(count, held_out=split != "train", random=random)
            for split, count in num_users.items()
        },
        users={
            split: pl.Series([f"{split}-{user}" for user in range(count)])
            for split, count in num_users.items()
        },
        prepared={},
        dropped={},
    )
