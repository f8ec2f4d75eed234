"""Going on from an earlier run: items by id, new items near their kind, both models on the same users."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from planted_tastes import CLUSTER_SIZE, NUM_CLUSTERS, planted_sequences

from re4.common.errors import UsageError
from re4.training.config import TrainConfig
from re4.training.data.writing import write_dataset
from re4.training.evaluation.protocol import evaluate, summarise
from re4.training.evaluation.run_evaluation import match_items, rank_matched
from re4.training.run.run import Run
from re4.training.trainer.loop import train

CONFIG = TrainConfig(
    embedding_dim=16, attention_dim=16, num_interests=2, construct_dim=8, num_epochs=4, learning_rate=0.01
)
NUM_ITEMS = NUM_CLUSTERS * CLUSTER_SIZE
NEW = range(0, NUM_ITEMS, CLUSTER_SIZE)
"""One item of each taste, which the earlier data do not have."""


def prepare(path, *, order, left_out=()):
    """Planted tastes with the items in an order of their own; events with the items left out are dropped."""
    random = np.random.default_rng(3)
    place = {item: row for row, item in enumerate(order)}

    def split(num_users, held_out):
        given = planted_sequences(num_users, held_out=held_out, random=random)
        users = []
        for user in range(num_users):
            events = given.items_E[given.offsets_U1[user] : given.offsets_U1[user + 1]]
            users.append([place[item] for item in events.tolist() if item not in left_out])
        lengths = [len(events) for events in users]
        return type(given)(
            items_E=np.concatenate(users).astype(np.int32),
            offsets_U1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            num_history_U=np.array([length * 4 // 5 if held_out else length for length in lengths], np.int32),
        )

    return write_dataset(
        path,
        items=pl.DataFrame({"item_id": [f"item-{item}" for item in order]}),
        sequences={"train": split(400, False), "valid": split(60, True), "test": split(60, True)},
        users={
            name: pl.Series("user_id", range(start, start + count))
            for name, start, count in (("train", 0, 400), ("valid", 400, 60), ("test", 460, 60))
        },
        prepared={},
        dropped={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def old(folder):
    """A run on data without the new items."""
    order = [item for item in range(NUM_ITEMS) if item not in NEW]
    train(prepare(folder / "old-data", order=order, left_out=set(NEW)), CONFIG, folder / "old", device="cpu")
    return Run.open(folder / "old")


@pytest.fixture(scope="module")
def newer(folder):
    """The same tastes with the new items, everything in another order."""
    return prepare(folder / "data", order=np.random.default_rng(0).permutation(NUM_ITEMS).tolist())


def judged(run, dataset):
    ranking = rank_matched(run, match_items(dataset, run), dataset.valid, exclude_history=False, title="")
    return summarise(ranking, dataset.valid, dataset.num_items)


def test_items_keep_their_vectors_by_id_and_new_ones_lie_with_their_kind(old, newer, folder):
    config = TrainConfig(**(CONFIG.to_json() | {"num_epochs": 0}))
    train(newer, config, folder / "start", previous=old, device="cpu")
    started = Run.open(folder / "start")
    vectors, before = started.load_model().item_vectors_ND(), old.load_model().item_vectors_ND()
    ids, theirs = started.items()["item_id"].to_list(), old.items()["item_id"].to_list()
    for row, item in enumerate(ids):
        if item in theirs:
            assert torch.equal(vectors[row], before[theirs.index(item)])
    unit = torch.nn.functional.normalize(vectors, dim=1)
    for item in NEW:
        cosines = unit @ unit[ids.index(f"item-{item}")]
        kind = [ids.index(f"item-{item + step}") for step in range(1, CLUSTER_SIZE)]
        others = [row for row in range(NUM_ITEMS) if row not in kind and ids[row] != f"item-{item}"]
        assert cosines[kind].mean() > cosines[others].mean() + 0.2


def test_one_epoch_more_beats_the_earlier_run_on_the_same_users(old, newer, folder):
    config = TrainConfig(**(CONFIG.to_json() | {"num_epochs": 1}))
    result = train(newer, config, folder / "warm", previous=old, device="cpu")
    run = Run.open(folder / "warm")
    recorded = run.evaluation()["valid_by_previous_run"]
    expected = judged(old, newer)
    assert recorded == expected.to_json()
    assert result.valid.recall_50 > recorded["recall_50"], "the earlier run cannot find new items"
    assert json.loads((folder / "warm" / "config.json").read_text())["started_from"] == str(old.path)


def test_on_its_own_data_the_earlier_run_is_judged_as_ever(old, folder):
    from re4.training.data.dataset import Dataset

    dataset = Dataset.open(folder / "old-data")
    assert judged(old, dataset) == evaluate(old.load_model(), dataset.valid, exclude_history=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_interests": 3}, "--num-interests is 3, but the run to go on from has 2"),
        ({"model": "comirec-sa"}, "--model is comirec-sa"),
        ({"num_blocks": 1}, "--num-blocks is 1, but the run to go on from has 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(old, newer, folder, change, message):
    with pytest.raises(UsageError, match=message):
        train(newer, TrainConfig(**(CONFIG.to_json() | change)), folder / "no", previous=old, device="cpu")
    assert not (folder / "no").exists()


def test_data_without_a_common_item_are_refused(old, newer, folder, monkeypatch):
    strangers = pl.DataFrame({"item_id": [f"other-{row}" for row in range(NUM_ITEMS)]})
    monkeypatch.setattr(type(newer), "items", lambda self: strangers)
    with pytest.raises(UsageError, match="no item in common"):
        match_items(newer, old)
